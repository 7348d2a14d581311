"""What the loss of a batch is made of."""

from typing import NamedTuple


class Form(NamedTuple):
    """Cross-entropy and LADE's regulariser, weighted and added; without the latter it is cross-entropy.

    Attributes:
        of_surprise: What the mean cross-entropy is multiplied by.
        of_regulariser: What the regulariser is multiplied by.
        lam: Weight of its squared term.
        released: Whether it is that of the authors' code.
        total: Whether the loss is multiplied by the number of rows that count.
    """

    of_surprise: float
    of_regulariser: float
    lam: float
    released: bool
    total: bool
