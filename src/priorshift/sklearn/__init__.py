"""scikit-learn estimators: any classifier, calibrated and adjusted to the class mix of its deployment."""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
