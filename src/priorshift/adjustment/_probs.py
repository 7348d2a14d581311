"""The move between class priors for people whose scorer gives probabilities."""

from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from priorshift._blocks import for_blocks
from priorshift._inputs import Array, ArrayLike, Kind, check_probs, read_kind, wrong_probs
from priorshift.adjustment._adjust import in_kind, looked_at, num_classes_of, read_priors
from priorshift.adjustment._sigmoid import read_rates
from priorshift.priors import Prior

_DIRECT = 30.0
"""Log-ratio of two classes' factors up to which products of float32 probabilities cannot underflow."""


def adjust_probs(
    probs: ArrayLike, *, carried: Prior | ArrayLike | float, target: Prior | ArrayLike | float
) -> Any:
    r"""Move class probabilities from the prior that they carry to a target prior.

    $$p^t(y \mid x) = \frac{p(y \mid x) \, t(y) / q(y)}{\sum_{y'} p(y' \mid x) \, t(y') / q(y')}$$

    Bayes' rule for a new class prior: what to do **at test time** with `predict_proba` of any classifier
    whose class prior changes between training and deployment. It equals the softmax of
    [`adjust`][priorshift.adjust] applied to the logarithms. A probability of exactly 0 stays 0 for every
    target; to give a class that a forest has ruled out another chance use `Predictions.from_probs`.

    Args:
        probs: Probabilities, `[C]`, `[N, C]` or `[N, C, …]`, that sum to 1 over the classes within a
            thousandth: an array of any library, or a table with one column per class. Or P(positive) of a
            binary classifier, `[N]` or `[N, 1]`: then `carried` and `target` are two numbers.
        carried: The prior $q$ that the probabilities carry, `[C]`, strictly positive: for most classifiers
            the class prior of the training data. For P(positive) the rate of positives, above 0 and below 1.
        target: The prior $t$ where the model is used, `[C]`, in which a class may have zero mass; or the rate
            of positives there, from 0 to 1.

    Returns:
        Probabilities of the same shape, kind and device, which sum to 1; at least float32, float64 stays
        float64. A tensor keeps its gradients, a table its column names and index. Priors given by name are
        matched to the names of the columns.

    Raises:
        TypeError: If `probs` are no floating-point numbers.
        ValueError: If a row is no distribution (logits, log-probabilities, percentages), a prior does not fit
            the classes, or `target` is zero for every class that a row holds possible. Values that a compiler
            traces, of JAX or on a GPU are not looked at: such a row comes back as NaN.

    Example:
        >>> adjust_probs([[0.9, 0.1], [0.6, 0.4]], carried=[0.8, 0.2], target=[0.5, 0.5]).round(3)
        array([[0.692, 0.308],
               [0.273, 0.727]])
        >>> adjust_probs([0.1, 0.4], carried=0.2, target=0.5).round(3)
        array([0.308, 0.727])

    References:
        Saerens et al., *Adjusting the Outputs of a Classifier to New a Priori Probabilities*, Neural
        Computation 14(1), 2002, Eq. 2.4; Elkan, *The Foundations of Cost-Sensitive Learning*, IJCAI 2001,
        Theorem 2.
    """
    kind = read_kind(probs, "probs")
    if kind.scores.ndim == 0:
        raise ValueError("Expected `probs` of shape [N], [C], [N, C] or [N, C, …], but got a scalar.")
    if _is_number(carried) and _is_number(target):
        return kind.back(_move_positive(kind, carried, target))
    source, destination = read_priors(kind, carried, target)
    offset = destination.log_probs - source.log_probs
    return kind.back(_move_rows(kind, offset - offset.max()))


def _is_number(rate: object) -> bool:
    return isinstance(rate, Real) or getattr(rate, "shape", None) == ()


def _move_positive(kind: Kind, carried: ArrayLike, target: ArrayLike) -> Any:
    """P(positive) under another rate of positives."""
    if kind.scores.ndim > 2 or (kind.scores.ndim == 2 and num_classes_of(kind) != 1):
        raise ValueError(
            f"Expected `carried` and `target` with one entry per class, {num_classes_of(kind)}, but got one "
            "number each: those are for P(positive), of shape [N] or [N, 1]."
        )
    source, destination = (float(rate) for rate in read_rates(carried, target, None))
    positive, negative = destination * (1 - source), source * (1 - destination)
    positive, negative = positive / max(positive, negative), negative / max(positive, negative)
    if (seen := looked_at(kind)) is not None:
        _check_positive(seen.reshape(-1), positive, negative)

    def work(values: Any) -> Any:
        share = values * positive
        return share / (share + (1 - values) * negative)

    if kind.xp is not np:
        return work(kind.scores)
    found = np.empty(kind.scores.shape, kind.scores.dtype)

    def write(block: slice) -> None:
        found[block] = work(kind.scores[block].astype(np.float64))

    for_blocks(write, len(found), 1)
    return found


def _check_positive(values: Array, positive: float, negative: float) -> None:
    wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(wrong):
        value = values[wrong[0]]
        remedy = "Divide percentages by 100." if 1 < value <= 100 else "Apply a sigmoid if these are logits."
        raise ValueError(
            f"Expected `probs` between 0 and 1, but got {value:g} for sample {wrong[0]} ({len(wrong)} of "
            f"{len(values)} are wrong). {remedy}"
        )
    for factor, certain in ((positive, 1), (negative, 0)):
        if factor == 0 and (values == certain).any():
            _refuse_row(int(np.flatnonzero(values == certain)[0]))


def _move_rows(kind: Kind, offset: npt.NDArray[np.float64]) -> Any:
    """Distributions over the classes times `exp(offset)`, which is at most 1, normalized."""
    xp, scores = kind.xp, kind.scores
    absent = offset == -np.inf
    direct = not absent.any() and bool(np.ptp(offset) <= _DIRECT)
    if (seen := looked_at(kind)) is not None:
        _check_rows(_rows(seen, np), absent)
    rows = _rows(scores, xp)
    if xp is np:
        found = np.empty(rows.shape, scores.dtype)

        def write(block: slice) -> None:
            found[block] = _posterior(rows[block].astype(np.float64), offset, np, direct)

        for_blocks(write, *rows.shape)
    else:
        found = _posterior(rows, in_kind(kind, offset), xp, direct)
    if scores.ndim <= 2:
        return xp.reshape(found, scores.shape)
    shape = (scores.shape[0], *scores.shape[2:], scores.shape[1])
    return xp.moveaxis(xp.reshape(found, shape), -1, 1)


def _rows(scores: Any, xp: ModuleType) -> Any:
    """One row per sample: the second dimension of maps comes last."""
    if scores.ndim == 1:
        return scores[None, :]
    return scores if scores.ndim == 2 else xp.reshape(xp.moveaxis(scores, 1, -1), (-1, scores.shape[1]))


def _check_rows(rows: Array, absent: npt.NDArray[np.bool_]) -> None:
    if any(wrong.any() for wrong in for_blocks(lambda block: wrong_probs(rows[block]), *rows.shape)):
        check_probs(rows, "probs")
    if absent.any() and len(ruled_out := np.flatnonzero(~(rows[:, ~absent] > 0).any(axis=1))):
        _refuse_row(int(ruled_out[0]))


def _refuse_row(row: int) -> None:
    raise ValueError(
        f"Expected `target` to leave every sample a possible class, but it is zero for each class that row "
        f"{row} of `probs` holds possible."
    )


def _posterior(rows: Any, offset: Any, xp: ModuleType, direct: bool) -> Any:
    if direct:
        masses = rows * xp.exp(offset)
    else:  # products might underflow; the logarithm of a zero would make its gradient NaN
        possible = (rows > 0) & (offset > -np.inf)
        logs = xp.log(xp.where(possible, rows, 1.0)) + xp.where(offset > -np.inf, offset, 0.0)
        logs = xp.where(possible, logs, -np.inf)
        masses = xp.exp(logs - xp.max(logs, axis=1, keepdims=True))
    return masses / xp.sum(masses, axis=1, keepdims=True)
