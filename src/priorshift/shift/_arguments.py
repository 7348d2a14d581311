"""Counts, class indices, ratios and seeds as users pass them, read and checked in one place."""

import operator
import reprlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from priorshift.priors import ArrayLike, IndexLike


def read_counts(counts: ArrayLike, argument: str) -> Int[Tensor, " classes"]:
    """Counts as int64, shape `[C]`: whole numbers, zero allowed.

    Raises:
        TypeError: If they cannot be read as real numbers.
        ValueError: If they are not one-dimensional with at least two entries, or one is negative or not
            whole.
    """
    values = _as_vector(counts, argument).to(torch.float64)
    if len(values) < 2:
        raise ValueError(
            f"Expected `{argument}` with one entry per class, at least two, but got {len(values)}."
        )
    wrong = torch.nonzero(~((values >= 0) & (values == values.floor()) & values.isfinite())).flatten()
    if wrong.numel():
        first = int(wrong[0])
        raise ValueError(
            f"Expected `{argument}` to be whole and non-negative, but got {values[first].item()} "
            f"for class {first}."
        )
    return values.to(torch.int64)


def read_labels(labels: IndexLike) -> Int[Tensor, " n"]:
    """Class indices as int64 on the CPU, shape `[N]`; their range is checked where the classes are known.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If they are not one-dimensional.
    """
    values = _as_vector(labels, "labels")
    if values.numel() and (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool):
        raise TypeError(f"Expected `labels` to be class indices, but got dtype {values.dtype}.")
    return values.to(torch.int64)


def check_seed(seed: int) -> int:
    """A seed as a plain `int`.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is negative.
    """
    try:
        number = int(operator.index(seed))
    except TypeError as error:
        raise TypeError(f"Expected `seed` to be a whole number, but got {seed!r}.") from error
    if number < 0:
        raise ValueError(f"Expected `seed` to be non-negative, but got {number}.")
    return number


def check_ratio(ratio: float, argument: str) -> None:
    """Refuse a ratio of the largest to the smallest class that is below 1 or not finite.

    Raises:
        ValueError: The message names `argument`.
    """
    if not 1 <= ratio < float("inf"):
        raise ValueError(
            f"Expected `{argument}`, the ratio of the largest to the smallest class, to be finite and "
            f"at least 1, but got {ratio}."
        )


def check_num_classes(num_classes: int) -> None:
    """Refuse fewer than two classes.

    Raises:
        ValueError: If there are fewer than two.
    """
    if num_classes < 2:
        raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")


def _as_vector(values: ArrayLike, argument: str) -> Tensor:
    try:
        # NumPy's copy is writable; torch warns about an array that is not.
        vector = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected `{argument}` to be a one-dimensional list, array or tensor of numbers, "
            f"but got {reprlib.repr(values)}."
        ) from error
    if vector.ndim != 1:
        raise ValueError(f"Expected `{argument}` to be one-dimensional, but got shape {tuple(vector.shape)}.")
    return vector
