"""The same move for multi-label models, whose logits are log-odds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from priorshift._blocks import for_blocks
from priorshift._inputs import ArrayLike, Kind, read_array, read_kind, read_per_class
from priorshift._kinds import library
from priorshift.adjustment._adjust import fresh, in_kind

Rates = Float[np.ndarray, "*labels"]


def adjust_sigmoid(logits: ArrayLike, *, carried: float | ArrayLike, target: float | ArrayLike) -> Any:
    r"""Move sigmoid logits from the positive rates that they carry to target rates.

    $$f^t_l(x) = f_l(x) - \log\frac{q_l}{1 - q_l} + \log\frac{t_l}{1 - t_l}$$

    A trained logit is $\log\frac{p(y_l = 1 \mid x)}{p(y_l = 0 \mid x)} = \log\frac{p(x \mid y_l = 1)}{p(x
    \mid y_l = 0)} + \log\frac{q_l}{1 - q_l}$, so changing the rate of positives swaps the last term. This is
    what to do **at test time**, before the sigmoid. Binary cross-entropy carries the rates $\pi_l$ of its
    training stream; with a `pos_weight` $w_l$ it carries $w_l \pi_l / (w_l \pi_l + 1 - \pi_l)$. For the
    probabilities of a binary model use [`adjust_probs`][priorshift.adjust_probs].

    Each label is adjusted by itself, as the two-class `adjust` with logits $[0, f_l]$. That is right where
    $p(x \mid y_l = 1) / p(x \mid y_l = 0)$ stays as it was. It need not where labels occur together: for a
    model that recognizes umbrellas by the rain around them, weather with more rain changes that ratio.
    Subtracting $\log q_l$ alone, as from softmax logits, leaves the prior of the negatives where it was.

    Args:
        logits: Log-odds, shape `[N]`, `[N, L]` or `[N, L, …]`, of any kind that `adjust` takes.
        carried: The rate $q$ of positives that the logits carry, between 0 and 1 and neither of them, one
            number or one per label, `[L]`.
        target: The rate $t$ where the model is used, one number or `[L]`. At 0 the logit is $-\infty$, at 1
            it is $+\infty$: probabilities of exactly 0 and 1.

    Returns:
        Logits of the same shape, kind and device; at least float32, float64 stays float64. With
        `carried == target` they equal the input. Rates given by name are matched to the names of the columns.

    Raises:
        TypeError: If `logits` are no floating-point numbers, or a rate is no number.
        ValueError: If a rate is out of range, or there is not one rate, or one per label.

    Example:
        >>> import numpy as np
        >>> moved = adjust_sigmoid(np.array([[2.0, -1.0]]), carried=[0.5, 0.1], target=[0.1, 0.5])
        >>> (1 / (1 + np.exp(-moved))).round(4)
        array([[0.4509, 0.768 ]])

    References:
        The two-class case of Hong et al., *Disentangling Label Distribution for Long-tailed Visual
        Recognition*, CVPR 2021, Eq. 17; Elkan, *The Foundations of Cost-Sensitive Learning*, IJCAI 2001,
        Theorem 2.
    """
    kind = read_kind(logits)
    if kind.scores.ndim == 0:
        raise ValueError("Expected `logits` of shape [N], [N, L] or [N, L, …], but got a scalar.")
    num_labels = None if kind.scores.ndim == 1 else int(kind.scores.shape[1])
    source, destination = read_rates(carried, target, num_labels, kind.names)
    offset = np.asarray(_log_odds(destination) - _log_odds(source))
    return kind.back(_move(kind, offset, logits))


def read_rates(
    carried: float | ArrayLike,
    target: float | ArrayLike,
    num_labels: int | None,
    names: Sequence[str] | None = None,
) -> tuple[Rates, Float[np.ndarray, "*targets"]]:
    """The rate that scores carry, strictly between 0 and 1, and the target rate; one or one per label."""
    source = _read_rate(carried, "carried", num_labels, names)
    _refuse(source, (source == 0) | (source == 1), "`carried` above 0 and below 1")
    return source, _read_rate(target, "target", num_labels, names)


def _log_odds(rates: Rates) -> Rates:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rates) - np.log1p(-rates))


def _move(kind: Kind, offset: Rates, given: ArrayLike) -> Any:
    scores, xp = kind.scores, kind.xp
    if offset.ndim:
        offset = offset.reshape(1, -1, *(1,) * (scores.ndim - 2))
    # A certain label overrules every logit, an infinite one of the other sign too.
    certain = np.isinf(offset)
    if xp is np:
        moved, shift = fresh(kind, given), np.where(certain, 0, offset).astype(scores.dtype)
        row_size = max(1, scores[:1].size)
        for_blocks(lambda rows: np.add(scores[rows], shift, out=moved[rows]), len(scores), row_size)
        if certain.any():
            np.copyto(moved, offset.astype(scores.dtype), where=certain)
        return moved
    moved = scores + in_kind(kind, np.where(certain, 0, offset))
    if not certain.any():
        return moved
    return xp.where(in_kind(kind, certain, dtype=xp.bool), in_kind(kind, offset), moved)


def _read_rate(
    values: float | ArrayLike, argument: str, num_labels: int | None, names: Sequence[str] | None
) -> Rates:
    if isinstance(values, Mapping) or (library(values) == "pandas" and num_labels != 1):
        rates = read_per_class(values, argument, names=names)[0]
    else:
        try:
            rates = read_array(values, argument).astype(np.float64)
        except TypeError as error:
            raise TypeError(
                f"Expected `{argument}` to be one number or one per label, but got {values!r}."
            ) from error
    if rates.ndim and rates.shape != (num_labels,):
        shape = "one number" if num_labels is None else f"one number or one per label, {num_labels}"
        raise ValueError(f"Expected `{argument}` to be {shape}, but got shape {tuple(rates.shape)}.")
    _refuse(rates, ~((rates >= 0) & (rates <= 1)), f"`{argument}` between 0 and 1")
    return rates


def _refuse(rates: Rates, wrong: Bool[np.ndarray, "*labels"] | np.bool_, rule: str) -> None:
    if wrong.any():
        where = f" for label {np.flatnonzero(wrong)[0]}" if rates.ndim else ""
        raise ValueError(f"Expected {rule}, but got {rates[wrong][0]:g}{where}.")
