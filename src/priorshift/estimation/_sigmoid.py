"""How often each label of a binary or multi-label model is positive where the model is used."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, final

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from priorshift._blocks import for_blocks
from priorshift._inputs import ArrayLike, read_rows, require_between
from priorshift._kinds import floating
from priorshift.adjustment._sigmoid import read_rates
from priorshift.estimation._roots import find_roots

_ROUNDING = 1e-6
"""Distance from 1 within which a likelihood ratio is uninformative: float32 logits are off by this much."""
_GROUP = 8
"""Likelihoods that are multiplied before a logarithm is taken, which costs as much as twenty products."""
_SMALLEST = 1e-290
"""Products below this have lost digits."""


@final
@dataclass(frozen=True, eq=False)
class RateEstimate:
    """Positive rates with their intervals, one per label; plain numbers (shape `[]`) for a binary model.

    Attributes:
        rates: The maximum-likelihood rates, float64, `[L]`; the `target` of `adjust_sigmoid`.
        lower: Lower end of the interval of each label, `[L]`.
        upper: Upper end, `[L]`. An interval from 0 to 1 means that these logits carry no information.
        level: The confidence level of each interval by itself, not of all of them together.
        converged: Whether the search for each rate ended within its tolerance, `[L]`.
    """

    rates: Float[np.ndarray, "*labels"] | np.float64
    lower: Float[np.ndarray, "*labels"] | np.float64
    upper: Float[np.ndarray, "*labels"] | np.float64
    level: float
    converged: Bool[np.ndarray, "*labels"] | np.bool_


def estimate_rates(logits: ArrayLike, *, carried: float | ArrayLike, level: float = 0.9) -> RateEstimate:
    r"""The positive rate of every label, from unlabelled sigmoid logits, by maximum likelihood.

    $$\hat t = \arg\max_{0 \le t \le 1} L(t), \qquad
      L(t) = \frac1N \sum_i \log\bigl(1 - t + t\,\rho_i\bigr), \qquad
      \rho_i = e^{f(x_i)} \frac{1 - q}{q}$$

    for each label by itself. The likelihood ratio $\rho = p(x \mid 1) / p(x \mid 0)$ must be the one of the
    training data, which is what `adjust_sigmoid` assumes as well, and the logits calibrated: the interval
    counts the chance in these $N$ samples, not an error in the logits. $L$ is concave, so there is one
    maximum, found by safeguarded Newton steps to $10^{-10}$. The interval holds every rate that a likelihood
    ratio test does not reject, $2N(L(\hat t) - L(t)) \le \chi^2_1(\text{level})$; it stays within $[0, 1]$
    and is no point at the boundary. At 90% it covers the true rate in 90% of cases, in 94% to 99% where that
    rate is 0 or 1, and in 85% to 97% where about two to five samples are expected to be positive.

    **At test time** pass `.rates` to `adjust_sigmoid` as its `target`. Uninformative samples ($\rho = 1$ for
    all, up to rounding) leave a label at its carried rate, with the interval $[0, 1]$.

    Args:
        logits: Log-odds of unlabelled samples, `[N]` or `[N, L]`: an array (a memory map will do), or a
            table, whose columns name the labels. They are read in blocks of labels.
        carried: The rate $q$ of positives that the logits carry, between 0 and 1 and neither of them, one
            number or one per label, `[L]`; rates given by name are matched to the names of the columns.
        level: Confidence level of each interval, between 0 and 1 and neither of them.

    Raises:
        TypeError: If `logits` are no floating-point numbers, or `carried` is no number.
        ValueError: If `logits` hold NaN or no sample, `carried` or `level` is out of range, or there is not
            one rate, or one per label.

    Example:
        >>> import numpy as np
        >>> logits = np.array([4.0, -3.0, -5.0, -4.0, 0.5, -6.0, -3.5, 5.0])
        >>> estimate = estimate_rates(logits, carried=0.5)
        >>> [round(float(rate), 3) for rate in (estimate.lower, estimate.rates, estimate.upper)]
        [0.073, 0.3, 0.619]

    References:
        The likelihood: Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities",
        Neural Computation 14(1), 2002, with two classes. The interval: Wilks, Annals of Mathematical
        Statistics 9(1), 1938.
    """
    names, scores = read_rows(logits, "logits")
    scores = floating(scores, "logits")
    if scores.ndim not in (1, 2) or 0 in scores.shape:
        raise ValueError(
            "Expected `logits` of shape [N] or [N, L] with at least one sample and one label, "
            f"but got shape {scores.shape}."
        )
    require_between("level", level, 0, 1)
    shape = scores.shape[1:]
    columns = scores if shape else scores[:, None]
    num_samples, num_labels = columns.shape
    source = np.broadcast_to(read_rates(carried, 0.5, shape[0] if shape else None, names)[0], num_labels)
    drop = NormalDist().inv_cdf((1 + level) / 2) ** 2 / (2 * num_samples)

    def work(part: slice) -> tuple[npt.NDArray[Any], ...]:
        log_odds = np.array(columns[:, part].T, dtype=np.float64, order="C")
        if (wrong := np.isnan(log_odds.max(axis=1))).any():
            label = part.start + int(np.flatnonzero(wrong)[0])
            raise ValueError(f"Expected `logits` without NaN, but got NaN for label {label}.")
        return _estimate(log_odds, source[part], drop)

    blocks = for_blocks(work, num_labels, num_samples)
    rates, lower, upper, converged = (
        np.concatenate(parts).reshape(shape)[()] for parts in zip(*blocks, strict=True)
    )
    return RateEstimate(rates, lower, upper, level, converged)


def _estimate(
    log_ratios: Float[np.ndarray, "labels samples"], carried: Float[np.ndarray, " labels"], drop: float
) -> tuple[
    Float[np.ndarray, " labels"],
    Float[np.ndarray, " labels"],
    Float[np.ndarray, " labels"],
    Bool[np.ndarray, " labels"],
]:
    """Rates, ends of their intervals, and whether the rates converged. Overwrites the log-odds."""
    num_samples = log_ratios.shape[1]
    ones = np.ones(num_samples)
    log_ratios -= (np.log(carried) - np.log1p(-carried))[:, None]
    # Both likelihoods of a sample, the larger of them scaled to 1: neither overflows, nor does their mixture.
    rarer = np.abs(log_ratios)
    np.negative(rarer, out=rarer)
    np.exp(rarer, out=rarer)
    favors = log_ratios > 0
    negative, positive = np.where(favors, rarer, 1.0), np.where(favors, 1.0, rarer)
    difference = np.subtract(positive, negative, out=log_ratios)
    scratch, other = rarer, np.empty_like(rarer)

    def mixture(rates: Float[np.ndarray, " labels"]) -> Float[np.ndarray, "labels samples"]:
        np.multiply(negative, 1 - rates[:, None], out=scratch)
        np.multiply(positive, rates[:, None], out=other)
        return np.asarray(np.add(scratch, other, out=scratch))

    def scores(rates: Float[np.ndarray, " labels"]) -> Float[np.ndarray, "labels samples"]:
        return np.asarray(np.divide(difference, mixture(rates), out=scratch))

    def ascent(
        rates: Float[np.ndarray, " labels"],
    ) -> tuple[Float[np.ndarray, " labels"], Float[np.ndarray, " labels"]]:
        """How far one EM step moves the rates, t(1 - t)L'(t), and the derivative of that."""
        found = scores(rates)
        slope, spread = found @ ones / num_samples, rates * (1 - rates)
        squares = np.einsum("ij,ij->i", found, found) / num_samples
        return spread * slope, (1 - 2 * rates) * slope - spread * squares

    def excess(
        rates: Float[np.ndarray, " labels"],
    ) -> tuple[Float[np.ndarray, " labels"], Float[np.ndarray, " labels"]]:
        """By how much the likelihood falls below the lowest that the interval allows, and its derivative."""
        mixed = mixture(rates)
        value = lowest - _mean_log(mixed)
        return value, -(np.divide(difference, mixed, out=scratch) @ ones) / num_samples

    def shortfall(
        rates: Float[np.ndarray, " labels"],
    ) -> tuple[Float[np.ndarray, " labels"], Float[np.ndarray, " labels"]]:
        value, derivative = excess(rates)
        return -value, -derivative

    zero, one = np.zeros(len(carried)), np.ones(len(carried))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rises, falls = scores(zero) @ ones > 0, scores(one) @ ones < 0
        flat = np.abs(difference).max(axis=1) <= _ROUNDING
        low = np.where(flat, carried, np.where(falls, zero, one))
        high = np.where(flat, carried, np.where(rises, one, zero))
        # One EM step from the carried rates.
        guess = carried + carried * (1 - carried) * (scores(carried) @ ones) / num_samples
        rates, converged = find_roots(ascent, low, high, guess)

        lowest = _mean_log(mixture(rates)) - drop
        found = scores(rates)
        reach = np.sqrt(2 * drop * num_samples / np.einsum("ij,ij->i", found, found))
        lower_end = np.where(excess(zero)[0] > 0, rates, zero)
        lower, _ = find_roots(excess, zero, lower_end, rates - reach)
        upper_end = np.where(excess(one)[0] > 0, rates, one)
        upper, _ = find_roots(shortfall, upper_end, one, rates + reach)
    return rates, lower, upper, converged


def _mean_log(likelihoods: Float[np.ndarray, "labels samples"]) -> Float[np.ndarray, " labels"]:
    """The mean logarithm of likelihoods of at most 1, over samples."""
    num_samples = likelihoods.shape[1]
    width = num_samples // _GROUP
    products = likelihoods[:, :width].copy()
    for place in range(1, _GROUP):
        products *= likelihoods[:, place * width : (place + 1) * width]
    if not (products >= _SMALLEST).all():
        return np.asarray(np.log(likelihoods).sum(axis=1) / num_samples)
    rest = likelihoods[:, _GROUP * width :]
    total = np.log(products, out=products).sum(axis=1) + np.log(rest).sum(axis=1)
    return np.asarray(total / num_samples)
