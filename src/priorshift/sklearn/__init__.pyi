from ._classifier import PriorShiftClassifier as PriorShiftClassifier
from ._prior_estimator import PriorEstimator as PriorEstimator
