"""Where data come from: every function here is a source that a config can name, and returns `Splits`."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
