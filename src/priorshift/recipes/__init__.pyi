from ._digits import digits_balanced_softmax as digits_balanced_softmax
from ._digits import digits_lade as digits_lade
from ._digits import digits_softmax as digits_softmax

__all__: list[str]
