"""Train a model from a config into a run folder, and predict with it."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
