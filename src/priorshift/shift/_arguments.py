"""Counts and seeds as users pass them."""

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from priorshift._inputs import ArrayLike, read_per_class
from priorshift.priors import name_classes


def read_counts(
    counts: ArrayLike, argument: str, *, names: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Counts as int64, shape `[C]`, and the class names where they are known: whole numbers, zero allowed.

    Raises:
        TypeError: If they cannot be read as real numbers.
        ValueError: If they are not one-dimensional with at least two entries, or one is negative or not
            whole, or they name other classes than `names`.
    """
    values, found = read_per_class(counts, argument, names=names)
    wrong = np.flatnonzero(~((values >= 0) & (values == np.floor(values)) & np.isfinite(values))).tolist()
    if wrong:
        raise ValueError(
            f"Expected `{argument}` to be whole and non-negative, but got {values[wrong[0]]} "
            f"for {name_classes(wrong[:1], found)}."
        )
    return values.astype(np.int64), found


def read_whole(number: int, argument: str, *, least: int) -> int:
    """A whole number of at least `least` as a plain `int`.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is less.
    """
    try:
        whole = int(operator.index(number))
    except TypeError as error:
        raise TypeError(f"Expected `{argument}` to be a whole number, but got {number!r}.") from error
    if whole < least:
        rule = f"at least {least}" if least else "non-negative"
        raise ValueError(f"Expected `{argument}` to be {rule}, but got {whole}.")
    return whole
