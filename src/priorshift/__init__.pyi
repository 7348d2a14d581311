from .adjustment import adjust as adjust
from .adjustment import adjust_probs as adjust_probs
from .adjustment import logit_adjust as logit_adjust
from .predictions import Predictions as Predictions
from .priors import Prior as Prior

__version__: str
