from ._adjust import adjust as adjust
from ._adjust import logit_adjust as logit_adjust
