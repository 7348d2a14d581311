"""Reads the arguments of a metric once and drops the samples of zero weight."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from priorshift._inputs import ArrayLike, check_probs, read_labels, read_rows, read_weights
from priorshift._kinds import to_numpy

TOLERANCE = 1e-4
"""How far from 1 a row may sum. A float32 softmax over thousands of classes stays well within it."""

Rows = Num[np.ndarray, "samples classes"]


class Samples(NamedTuple):
    """The samples that a metric is taken over."""

    size: int
    """Number of samples given."""
    kept: Int[np.ndarray, " kept"] | None
    """Positions of the samples of positive weight; None if that is all of them."""
    weights: Float[np.ndarray, " kept"]
    """Their weights."""

    def read_classes(
        self,
        values: ArrayLike,
        argument: str,
        num_classes: int | None = None,
        names: Sequence[str] | None = None,
    ) -> Int[np.ndarray, " kept"]:
        """Class indices of the samples of positive weight."""
        if self.kept is not None:
            given = np.asarray(to_numpy(values))
            if given.shape == (self.size,):
                # Dropped samples get a label that is valid, so that only kept labels are checked.
                valid = given.dtype.type(0) if given.dtype.kind in "iu" else given[self.kept[0]]
                values = np.full_like(given, valid)
                values[self.kept] = given[self.kept]
        classes = read_labels(values, argument, size=self.size, num_classes=num_classes, names=names)
        return classes if self.kept is None else classes[self.kept]


def read_samples(size: int, weights: ArrayLike | None) -> Samples:
    """`size` samples and their weights."""
    masses = read_weights(weights, size)
    if weights is None or masses.all():
        return Samples(size, None, masses)
    kept = np.flatnonzero(masses)
    return Samples(size, kept, masses[kept])


def size_of(values: ArrayLike, argument: str) -> int:
    """The number of samples of an argument with one entry per sample."""
    try:
        size = int(values.shape[0]) if getattr(values, "shape", ()) else len(values)
    except TypeError as error:
        raise TypeError(f"Expected `{argument}` with one entry per sample, but got {values!r}.") from error
    if size == 0:
        raise ValueError(f"Expected `{argument}` with at least one sample, but got none.")
    return size


def read_pair(
    predicted: ArrayLike, labels: ArrayLike, num_classes: int | None, weights: ArrayLike | None
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " kept"], Samples]:
    """Predicted and true classes."""
    if num_classes is not None and num_classes < 2:
        raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")
    samples = read_samples(size_of(labels, "labels"), weights)
    truth = samples.read_classes(labels, "labels", num_classes)
    return samples.read_classes(predicted, "predicted", num_classes), truth, samples


def read_distributions(
    values: ArrayLike, argument: str, weights: ArrayLike | None
) -> tuple[Rows, Samples, Sequence[str] | None]:
    """Rows of probabilities or of their logarithms, the samples, and the column names of a table.

    That the rows are distributions is found out by the kernel that reads them: see `refuse_probs`.
    """
    names, rows = read_rows(values, argument)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
        raise ValueError(
            f"Expected `{argument}` with at least one sample and two classes, [N, C], "
            f"but got shape {rows.shape}."
        )
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)
    return rows, read_samples(len(rows), weights), names


def refuse_probs(rows: Rows, samples: Samples) -> None:
    """Refuse probabilities of which a kernel found a row to be no distribution, by the place of the row.

    Raises:
        ValueError: If a value is below 0 or a row does not sum to 1.
    """
    probs = np.full(rows.shape, 1 / rows.shape[1])
    kept = slice(None) if samples.kept is None else samples.kept
    probs[kept] = rows[kept]
    probs[(probs < 0) & (probs >= -TOLERANCE)] = 0
    check_probs(probs, "probs")
    _refuse_sums(probs.sum(axis=1), "probabilities", "probs", "Take the softmax in float32 or float64.")


def refuse_log_probs(rows: Rows, samples: Samples) -> None:
    """The same for log-probabilities.

    Raises:
        ValueError: If the exponentials of a row do not sum to 1.
    """
    sums = np.ones(samples.size)
    kept = np.arange(samples.size) if samples.kept is None else samples.kept
    with np.errstate(over="ignore", invalid="ignore"):
        sums[kept] = np.exp(rows[kept].astype(np.float64)).sum(axis=1)
        are_probs = (rows[kept] >= 0).all() and (np.abs(rows[kept].sum(axis=1) - 1) <= TOLERANCE).all()
    remedy = (
        "These are probabilities: pass their logarithm."
        if are_probs
        else "Take the log_softmax of logits in float32 or float64."
    )
    _refuse_sums(sums, "exponentials", "log_probs", remedy)


def _refuse_sums(sums: Float[np.ndarray, " samples"], what: str, argument: str, remedy: str) -> None:
    wrong = ~(np.abs(sums - 1) <= TOLERANCE)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"Expected the {what} of each row of `{argument}` to sum to 1, but got {sums[first]:.6g} for "
            f"sample {first} ({wrong.sum()} of {len(sums)} rows are off by more than {TOLERANCE:g}). {remedy}"
        )
