"""Move the logits of a trained scorer from the class prior they carry to another one."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
