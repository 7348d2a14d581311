"""The target prior from how a scorer confuses the classes: BBSE, hard and soft, and RLLS."""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int

from priorshift._blocks import for_blocks
from priorshift._inputs import (
    ArrayLike,
    Names,
    align,
    read_labels,
    read_scores,
    read_weights,
    require_at_least,
    require_between,
)
from priorshift.estimation._simplex import nearest_mix
from priorshift.priors import Prior, name_classes

_SINGULAR = 1e-10
"""Singular values below this share of the largest one count as 0."""
_RADIUS = 1e-9
"""Relative error of the radius at which RLLS ends its search."""
_LEAST_SUM = 1e-200
"""Sums of exponentials below this have lost digits."""


@final
@dataclass(frozen=True)
class ConfusionEstimate:
    r"""A target prior that explains the mean prediction on the target by the scorer's confusion.

    Attributes:
        prior: The estimate $\hat t$.
        residual: $\lVert K \hat t - \mu \rVert_2$. Where it is large beside $1/\sqrt n$, no mix
            explains the target.
        smallest_singular_value: Of the confusion $K$: errors of $\mu$ reach the prior divided by up to this.
        condition: Largest over smallest singular value of $K$.
        unidentifiable: Classes whose share no number of target samples determines, because $K$ is singular;
            their shares are an arbitrary choice among the best ones.
    """

    prior: Prior
    residual: float
    smallest_singular_value: float
    condition: float
    unidentifiable: tuple[int, ...]


def bbse(
    source_logits: ArrayLike,
    labels: ArrayLike,
    target_logits: ArrayLike,
    *,
    hard: bool = False,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> ConfusionEstimate:
    r"""Black box shift estimation: match the mean prediction on the target.

    $$\hat t = \arg\min_{t \in \Delta} \lVert K t - \mu \rVert_2, \qquad
      K_{\cdot y} = \operatorname{mean}_{i:\, y_i = y} h(x_i), \quad \mu = \operatorname{mean}_j h(x_j)$$

    with $h$ the softmax (soft) or the one-hot argmax (hard). Any scorer will do, calibrated or not and
    whatever prior its logits carry, as long as it is the same for both sets. $K$ averages within each class,
    so the class mix of the labelled samples does not matter. The paper inverts the joint confusion and clips
    negative weights; the least-squares solution over the simplex $\Delta$ is the same where that inverse is
    a distribution, and also exists where $K$ is singular.

    Args:
        source_logits: Scores of labelled samples of the source, held out of training, `[N, C]`: an array or
            a table, whose columns name the classes; log-probabilities are fine.
        labels: The class indices or names of these, `[N]`; every class must occur.
        target_logits: Scores of unlabelled samples of the target, `[M, C]`.
        hard: Count predicted classes instead of averaging probabilities.
        source_weights: Non-negative, `[N]`; a weight of 2 counts a sample twice.
        target_weights: Non-negative, `[M]`.

    Raises:
        TypeError: If scores are not floating-point, or labels neither whole numbers nor names.
        ValueError: If the parts do not fit, a class has no labelled sample, a score is NaN, or the scores are
            probabilities.

    Example:
        >>> import numpy as np
        >>> labelled = np.log([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
        >>> estimate = bbse(labelled, [0, 0, 1], np.log([[0.5, 0.5], [0.3, 0.7], [0.25, 0.75]]))
        >>> [round(p, 3) for p in estimate.prior.probs.tolist()]
        [0.25, 0.75]

    References:
        Lipton et al., *Detecting and Correcting for Label Shift with Black Box Predictors*, ICML 2018,
        Section 4.
    """
    return match(_read(source_logits, labels, target_logits, source_weights, target_weights, hard=hard))


def match(moments: "Moments") -> ConfusionEstimate:
    """`bbse` from moments."""
    confusion, mean = moments.confusion, moments.mean
    return _describe(moments, nearest_mix(confusion.T @ confusion, confusion.T @ mean))


def rlls(
    source_logits: ArrayLike,
    labels: ArrayLike,
    target_logits: ArrayLike,
    *,
    hard: bool = False,
    alpha: float = 0.01,
    delta: float = 0.05,
    lam: float = 1.0,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> ConfusionEstimate:
    r"""Regularized learning under label shift: `bbse` drawn towards the class mix of the source.

    $$\hat w = 1 + \lambda \hat\theta, \qquad \hat\theta = \arg\min_{\theta}
      \lVert K (\pi\theta) - (\mu - K\pi) \rVert_2 + \rho \lVert \theta \rVert_2, \qquad
      \hat t = \pi \hat w$$

    over the $\theta$ for which $\pi(1 + \theta)$ is a distribution, with the confusion $K$ and the mean
    prediction $\mu$ of `bbse` and the class mix $\pi$ of the labelled samples. The paper regularizes by
    $\rho = \Delta_C$, its bound on the error of the joint confusion $K \operatorname{diag} \pi$; its authors'
    released code, which later comparisons copy, by

    $$\rho = \alpha \cdot 3 \left( \frac{2 \log(2C/\delta)}{3N} + \sqrt{\frac{2 \log(2C/\delta)}{N}} \right),
      \qquad \alpha = 0.01, \; \delta = 0.05$$

    which is the default here. The paper lets $\lambda < 1$ damp the weights where the target sample is small;
    the released code uses 1. That code asks for $\theta \ge -1$ only and divides the result by its sum.
    `alpha=0` is `bbse`.

    Args:
        source_logits: Scores of labelled samples of the source, held out of training, `[N, C]`: an array or
            a table, whose columns name the classes; log-probabilities are fine.
        labels: The class indices or names of these, `[N]`; every class must occur.
        target_logits: Scores of unlabelled samples of the target, `[M, C]`.
        hard: Count predicted classes instead of averaging probabilities.
        alpha: Strength $\alpha \ge 0$ of the regularizer.
        delta: The probability $\delta$ with which the bound may fail, between 0 and 1.
        lam: Damping $\lambda$ of the weights, between 0 and 1.
        source_weights: Non-negative, `[N]`; a weight of 2 counts a sample twice, in $N$ too.
        target_weights: Non-negative, `[M]`.

    Raises:
        TypeError: If scores are not floating-point, or labels neither whole numbers nor names.
        ValueError: If the parts do not fit, a class has no labelled sample, a score is NaN, the scores are
            probabilities, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> labelled = np.log([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
        >>> estimate = rlls(labelled, [0, 0, 1], np.log([[0.5, 0.5], [0.3, 0.7], [0.25, 0.75]]))
        >>> [round(p, 3) for p in estimate.prior.probs.tolist()]
        [0.25, 0.75]

    References:
        Azizzadenesheli et al., *Regularized Learning for Domain Adaptation under Label Shifts*, ICLR 2019,
        Section 2.
    """
    require_at_least("alpha", alpha, 0)
    require_between("delta", delta, 0, 1)
    require_between("lam", lam, 0, 1, closed=True)
    moments = _read(source_logits, labels, target_logits, source_weights, target_weights, hard=hard)
    return match_regularized(moments, alpha=alpha, delta=delta, lam=lam)


def match_regularized(
    moments: "Moments", *, alpha: float = 0.01, delta: float = 0.05, lam: float = 1.0
) -> ConfusionEstimate:
    """`rlls` from moments."""
    source = moments.counts / moments.num_samples
    odds = 2 * math.log(2 * len(source) / delta) / moments.num_samples
    rho = alpha * 3 * (odds / 3 + math.sqrt(odds))
    masses = _regularized_mix(moments.confusion, moments.mean, source, rho)
    return _describe(moments, source + lam * (masses - source))


class Moments(NamedTuple):
    """What the estimates take from the samples."""

    confusion: Float[np.ndarray, "classes classes"]
    mean: Float[np.ndarray, " classes"]
    counts: Float[np.ndarray, " classes"]
    num_samples: float
    names: Names


def _read(
    source_logits: ArrayLike,
    labels: ArrayLike,
    target_logits: ArrayLike,
    source_weights: ArrayLike | None,
    target_weights: ArrayLike | None,
    *,
    hard: bool,
) -> Moments:
    source, names = read_scores(source_logits, "source_logits")
    size, num_classes = source.shape
    classes = read_labels(labels, size=size, num_classes=num_classes, names=names)
    masses = None if source_weights is None else read_weights(source_weights, size, "source_weights")
    target, there = read_scores(target_logits, "target_logits", num_classes=num_classes)
    if names is not None and there is not None and names != there:
        target = target[:, align(there, names, "target_logits")]
    weights = read_weights(target_weights, len(target), "target_weights")
    confusion, counts, num_samples = confusion_of(source, classes, masses, hard=hard, names=names)
    mean = _mean_prediction(target, weights, hard=hard)
    return Moments(confusion, mean, counts, num_samples, names or there)


def moments_of(
    source: Float[np.ndarray, "samples classes"],
    labels: Int[np.ndarray, " samples"],
    target: Float[np.ndarray, "targets classes"],
    *,
    names: Names,
    hard: bool,
) -> Moments:
    """The moments of samples that were read before."""
    confusion, counts, num_samples = confusion_of(source, labels, None, hard=hard)
    mean = _mean_prediction(target, np.ones(len(target)), hard=hard)
    return Moments(confusion, mean, counts, num_samples, names)


def confusion_of(
    scores: Float[np.ndarray, "samples classes"],
    labels: Int[np.ndarray, " samples"],
    weights: Float[np.ndarray, " samples"] | None,
    *,
    hard: bool,
    names: Names = None,
) -> tuple[Float[np.ndarray, "classes classes"], Float[np.ndarray, " classes"], float]:
    """The mean prediction of each class, a column each; the weight of each class; that of all.

    Raises:
        ValueError: If a class has no sample.
    """
    num_samples, num_classes = scores.shape
    weights = np.ones(num_samples) if weights is None else weights
    counts = np.bincount(labels, weights=weights, minlength=num_classes)
    if absent := np.flatnonzero(counts == 0).tolist():
        raise ValueError(
            "Expected labelled source samples of every class, whose confusion is estimated from them, "
            f"but there is none of {name_classes(absent, names)}."
        )
    if hard:
        cells = labels * num_classes + _predicted(scores)
        sums = np.bincount(cells, weights, minlength=num_classes**2).reshape(num_classes, num_classes)
    else:
        sums = _sums_by_class(scores, labels, weights)
    return (sums / counts[:, None]).T, counts, float(counts.sum())


def _mean_prediction(
    scores: Float[np.ndarray, "samples classes"], weights: Float[np.ndarray, " samples"], *, hard: bool
) -> Float[np.ndarray, " classes"]:
    if hard:
        sums = np.bincount(_predicted(scores), weights, minlength=scores.shape[1])
    else:

        def work(part: slice) -> Float[np.ndarray, " classes"]:
            exponentials, totals = _exponentials(scores[part])
            return np.asarray((weights[part] / totals) @ exponentials)

        sums = np.sum(for_blocks(work, *scores.shape), axis=0)
    return np.asarray(sums / weights.sum())


def _sums_by_class(
    scores: Float[np.ndarray, "samples classes"],
    labels: Int[np.ndarray, " samples"],
    weights: Float[np.ndarray, " samples"],
) -> Float[np.ndarray, "classes classes"]:
    """The weighted sum of the softmax over the samples of each class, a row each."""
    num_samples, num_classes = scores.shape
    # NumPy sorts 16-bit numbers in linear time.
    keys = labels.astype(np.uint16 if num_classes <= 2**16 else np.int64)
    order = keys.argsort(kind="stable")
    ends = np.bincount(labels, minlength=num_classes).cumsum()

    def work(part: slice) -> tuple[int, Float[np.ndarray, "some classes"]]:
        rows = order[part]
        exponentials, totals = _exponentials(scores.take(rows, axis=0))
        shares = weights[rows] / totals
        first, last = int(labels[rows[0]]), int(labels[rows[-1]])
        cuts = [0, *(ends[first:last] - part.start).tolist(), len(rows)]
        return first, np.stack(
            [shares[start:stop] @ exponentials[start:stop] for start, stop in itertools.pairwise(cuts)]
        )

    sums = np.zeros((num_classes, num_classes))
    for first, found in for_blocks(work, num_samples, num_classes):
        sums[first : first + len(found)] += found
    return sums


def _exponentials(
    scores: Float[np.ndarray, "samples classes"],
) -> tuple[Float[np.ndarray, "samples classes"], Float[np.ndarray, " samples"]]:
    """Exponentials of scores up to a factor per row, and their sum over each row, in float64."""
    values = scores.astype(np.float64)
    with np.errstate(over="ignore"):
        np.exp(values, out=values)
        totals = values @ np.ones(values.shape[1])
    # A pass to subtract the largest score of each row is saved where no digits are lost without it.
    if len(far := np.flatnonzero(~((totals > _LEAST_SUM) & (totals < np.inf)))):
        rows = scores[far].astype(np.float64)
        values[far] = np.exp(rows - rows.max(axis=1, keepdims=True))
        totals[far] = values[far].sum(axis=1)
    return values, totals


def _predicted(scores: Float[np.ndarray, "samples classes"]) -> Int[np.ndarray, " samples"]:
    return np.concatenate(for_blocks(lambda part: scores[part].argmax(axis=1), *scores.shape))


def _regularized_mix(
    confusion: Float[np.ndarray, "classes classes"],
    mean: Float[np.ndarray, " classes"],
    source: Float[np.ndarray, " classes"],
    rho: float,
) -> Float[np.ndarray, " classes"]:
    r"""Minimize ‖K·t − μ‖ + ρ‖t/π − 1‖ over the simplex.

    With $\kappa = \rho \lVert Kt - \mu \rVert / \lVert t / \pi - 1 \rVert$ the same t minimizes
    ‖K·t − μ‖² + κ‖t/π − 1‖². Of its minimizers the ratio κ‖t/π − 1‖ / ‖K·t − μ‖ grows with κ: find where
    it is ρ. It is above ρ everywhere if a mix of no residual is best.
    """
    quadratic, linear = confusion.T @ confusion, confusion.T @ mean

    @cache
    def mix_and_excess(log_kappa: float) -> tuple[Float[np.ndarray, " classes"], float]:
        kappa = math.exp(log_kappa)
        mix = nearest_mix(quadratic + np.diag(kappa / source**2), linear + kappa / source)
        strength = kappa * float(np.linalg.norm(mix / source - 1))
        residual = float(np.linalg.norm(confusion @ mix - mean))
        return mix, math.log(max(strength, 1e-300)) - math.log(max(rho * residual, 1e-300))

    if rho == 0:
        return nearest_mix(quadratic, linear)
    if _source_is_best(confusion, mean, source, rho):
        return source
    low = math.log(1e-9 * float(source.min()) ** 2)
    mix, below = mix_and_excess(low)
    if below >= 0:
        return mix
    high, above = low, below
    while above < 0:
        if high > 50:
            return source
        # The ratio grows no faster than κ, so a step of its shortfall stays below the root; 1 more ends that.
        low, high = high, high - above + 1
        above = mix_and_excess(high)[1]
    from scipy.optimize import brentq  # costs 0.1 s, which all other methods are spared

    root = brentq(lambda log_kappa: mix_and_excess(log_kappa)[1], low, high, xtol=_RADIUS)
    return mix_and_excess(root)[0]


def _source_is_best(
    confusion: Float[np.ndarray, "classes classes"],
    mean: Float[np.ndarray, " classes"],
    source: Float[np.ndarray, " classes"],
    rho: float,
) -> bool:
    """Whether no step from the class mix of the source lowers the residual faster than ρ‖θ‖ grows."""
    residual = confusion @ source - mean
    if not residual.any():
        return True
    slope = confusion.T @ residual / np.linalg.norm(residual)
    level = (source**2 @ slope) / (source @ source)
    return bool(np.linalg.norm(source * (slope - level)) <= rho)


def _describe(moments: Moments, masses: Float[np.ndarray, " classes"]) -> ConfusionEstimate:
    confusion, mean = moments.confusion, moments.mean
    prior = Prior(np.maximum(masses, 0), names=moments.names)
    values = np.linalg.svd(confusion, compute_uv=False)
    largest, smallest = float(values[0]), float(values[-1])
    unidentifiable: list[int] = []
    if smallest <= _SINGULAR * largest:
        _, values, axes = np.linalg.svd(confusion)
        involved = (axes[values <= _SINGULAR * largest] ** 2).sum(axis=0) > 1e-6
        unidentifiable = np.flatnonzero(involved).tolist()
    return ConfusionEstimate(
        prior=prior,
        residual=float(np.linalg.norm(confusion @ prior.probs - mean)),
        smallest_singular_value=smallest,
        condition=largest / smallest if smallest > 0 else math.inf,
        unidentifiable=tuple(unidentifiable),
    )
