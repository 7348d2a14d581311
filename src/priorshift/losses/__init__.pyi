from ._cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from ._cross_entropy import cross_entropy as cross_entropy
from ._lade import LADELoss as LADELoss
from ._lade import lade_loss as lade_loss
from ._lade import lader as lader
from ._logit_adjusted import BalancedSoftmaxLoss as BalancedSoftmaxLoss
from ._logit_adjusted import LogitAdjustedLoss as LogitAdjustedLoss
from ._logit_adjusted import logit_adjusted_cross_entropy as logit_adjusted_cross_entropy
from ._weighted import WeightedCrossEntropyLoss as WeightedCrossEntropyLoss
from ._weighted import weighted_cross_entropy as weighted_cross_entropy

__all__: list[str]
