"""Scores of predictions on any class mix, comparisons of methods, and the accuracy gap of an estimated prior.

`evaluate` judges one set of predictions on one mix, `compare` several runs on several mixes, and `oracle_gap`
measures how much accuracy is lost when the target prior is estimated from unlabelled samples.
"""

from priorshift._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
