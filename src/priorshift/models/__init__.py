"""Networks: a backbone that turns images into features, and a head that turns features into logits."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
