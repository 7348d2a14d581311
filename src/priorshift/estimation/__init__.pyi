from ._confusion import ConfusionEstimate as ConfusionEstimate
from ._confusion import bbse as bbse
from ._confusion import rlls as rlls
from ._estimate import PriorEstimate as PriorEstimate
from ._estimate import estimate_prior as estimate_prior
from ._identifiability import Identifiability as Identifiability
from ._identifiability import identifiability as identifiability
from ._intervals import PriorIntervals as PriorIntervals
from ._intervals import bootstrap_intervals as bootstrap_intervals
from ._intervals import likelihood_intervals as likelihood_intervals
from ._label_shift import ShiftTest as ShiftTest
from ._label_shift import label_shift_test as label_shift_test
from ._likelihood import Likelihood as Likelihood
from ._likelihood import LikelihoodSolution as LikelihoodSolution
from ._methods import METHODS as METHODS
from ._methods import Method as Method
from ._posterior import empirical_bayes as empirical_bayes
from ._posterior import maximize_posterior as maximize_posterior
from ._sigmoid import RateEstimate as RateEstimate
from ._sigmoid import estimate_rates as estimate_rates

__all__: list[str]
