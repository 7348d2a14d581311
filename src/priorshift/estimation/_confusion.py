"""The target prior from how a scorer confuses the classes: BBSE, hard and soft, and RLLS."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from priorshift.priors import ArrayLike, IndexLike, Prior, count_labels, name_classes

_BLOCK = 2**18
"""Numbers that are worked on at a time: few enough to stay in a cache."""


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
        unidentifiable: Classes whose share cannot be told from this confusion however many target samples
            there are, because $K$ is singular; their shares are an arbitrary choice among the best ones.
    """

    prior: Prior
    residual: float
    smallest_singular_value: float
    condition: float
    unidentifiable: tuple[int, ...]


def bbse(
    source_logits: Float[Tensor, "samples classes"] | Float[np.ndarray, "samples classes"],
    labels: IndexLike,
    target_logits: Float[Tensor, "targets classes"] | Float[np.ndarray, "targets classes"],
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
        source_logits: Scores of labelled samples of the source, held out of training, `[N, C]`;
            log-probabilities are fine.
        labels: The class indices of these, `[N]`; every class must occur.
        target_logits: Scores of unlabelled samples of the target, `[M, C]`.
        hard: Count predicted classes instead of averaging probabilities.
        source_weights: Non-negative, `[N]`; a weight of 2 counts a sample twice.
        target_weights: Non-negative, `[M]`.

    Raises:
        TypeError: If scores are not floating-point, or labels not whole numbers.
        ValueError: If the parts do not fit, a class has no labelled sample, or a score is NaN.

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
    confusion, _, _ = confusion_of(source_logits, labels, source_weights, hard=hard)
    mean = _mean_prediction(target_logits, target_weights, len(confusion), hard=hard)
    return _describe(confusion, mean, nearest_mix(confusion.T @ confusion, confusion.T @ mean))


def rlls(
    source_logits: Float[Tensor, "samples classes"] | Float[np.ndarray, "samples classes"],
    labels: IndexLike,
    target_logits: Float[Tensor, "targets classes"] | Float[np.ndarray, "targets classes"],
    *,
    hard: bool = False,
    alpha: float = 0.01,
    delta: float = 0.05,
    lam: float = 1.0,
    source_weights: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
) -> ConfusionEstimate:
    r"""Regularised learning under label shift: `bbse` drawn towards the class mix of the source.

    $$\hat w = 1 + \lambda \hat\theta, \qquad \hat\theta = \arg\min_{\theta}
      \lVert K (\pi\theta) - (\mu - K\pi) \rVert_2 + \rho \lVert \theta \rVert_2, \qquad
      \hat t = \pi \hat w$$

    over the $\theta$ for which $\pi(1 + \theta)$ is a distribution, with the confusion $K$ and the mean
    prediction $\mu$ of `bbse` and the class mix $\pi$ of the labelled samples. The paper regularises by
    $\rho = \Delta_C$, its bound on the error of the joint confusion $K \operatorname{diag} \pi$; its authors'
    released code, which later comparisons copy, by

    $$\rho = \alpha \cdot 3 \left( \frac{2 \log(2C/\delta)}{3N} + \sqrt{\frac{2 \log(2C/\delta)}{N}} \right),
      \qquad \alpha = 0.01, \; \delta = 0.05$$

    which is the default here. The paper lets $\lambda < 1$ damp the weights where the target sample is small;
    the released code uses 1. That code asks for $\theta \ge -1$ only and divides the result by its sum.
    `alpha=0` is `bbse`.

    Args:
        source_logits: Scores of labelled samples of the source, held out of training, `[N, C]`;
            log-probabilities are fine.
        labels: The class indices of these, `[N]`; every class must occur.
        target_logits: Scores of unlabelled samples of the target, `[M, C]`.
        hard: Count predicted classes instead of averaging probabilities.
        alpha: Strength $\alpha \ge 0$ of the regulariser.
        delta: The probability $\delta$ with which the bound may fail, between 0 and 1.
        lam: Damping $\lambda$ of the weights, between 0 and 1.
        source_weights: Non-negative, `[N]`; a weight of 2 counts a sample twice, in $N$ too.
        target_weights: Non-negative, `[M]`.

    Raises:
        TypeError: If scores are not floating-point, or labels not whole numbers.
        ValueError: If the parts do not fit, a class has no labelled sample, a score is NaN, or a setting is
            out of range.

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
    if not 0 <= alpha < math.inf:
        raise ValueError(f"Expected `alpha` to be non-negative and finite, but got {alpha}.")
    if not 0 < delta < 1:
        raise ValueError(f"Expected `delta` between 0 and 1, but got {delta}.")
    if not 0 <= lam <= 1:
        raise ValueError(f"Expected `lam` between 0 and 1, but got {lam}.")
    confusion, counts, num_samples = confusion_of(source_logits, labels, source_weights, hard=hard)
    mean = _mean_prediction(target_logits, target_weights, len(confusion), hard=hard)
    source = counts / num_samples
    odds = 2 * math.log(2 * len(source) / delta) / num_samples
    rho = alpha * 3 * (odds / 3 + math.sqrt(odds))
    masses = _regularised_mix(confusion, mean, source, rho)
    return _describe(confusion, mean, source + lam * (masses - source))


def confusion_of(
    logits: Tensor | npt.NDArray[Any], labels: IndexLike, weights: ArrayLike | None, *, hard: bool
) -> tuple[Float[Tensor, "classes classes"], Float[Tensor, " classes"], float]:
    scores = _read_scores(logits, "source_logits")
    num_samples, num_classes = scores.shape
    count_labels(labels, num_classes)
    classes = torch.as_tensor(labels.detach().cpu() if isinstance(labels, Tensor) else np.array(labels))
    if classes.shape != (num_samples,):
        raise ValueError(
            f"Expected `labels` with one entry per row of `source_logits`, ({num_samples},), "
            f"but got shape {tuple(classes.shape)}."
        )
    classes, masses = classes.to(torch.int64), _read_weights(weights, "source_weights", num_samples)
    counts = torch.bincount(classes, weights=masses, minlength=num_classes)
    absent = torch.nonzero(counts == 0).flatten().tolist()
    if absent:
        raise ValueError(
            "Expected labelled source samples of every class, whose confusion is estimated from them, "
            f"but there is none of {name_classes(absent)}."
        )
    sums = _prediction_sums(scores, "source_logits", masses, classes, num_classes, hard=hard)
    return (sums / counts[:, None]).T, counts, counts.sum().item()


def _mean_prediction(
    logits: Tensor | npt.NDArray[Any], weights: ArrayLike | None, num_classes: int, *, hard: bool
) -> Float[Tensor, " classes"]:
    scores = _read_scores(logits, "target_logits")
    if scores.shape[1] != num_classes:
        raise ValueError(
            f"Expected `target_logits` of as many classes as `source_logits`, {num_classes}, "
            f"but got {scores.shape[1]}."
        )
    masses = _read_weights(weights, "target_weights", len(scores))
    return _prediction_sums(scores, "target_logits", masses, hard=hard)[0] / masses.sum()


def sum_of_predictions(
    logits: Tensor | npt.NDArray[Any], argument: str, *, hard: bool
) -> Float[Tensor, " classes"]:
    """The sum over samples of the probabilities, or of a one at the likeliest class."""
    scores = _read_scores(logits, argument)
    return _prediction_sums(scores, argument, _read_weights(None, "weights", len(scores)), hard=hard)[0]


def _read_scores(logits: Tensor | npt.NDArray[Any], argument: str) -> Float[Tensor, "samples classes"]:
    # Torch warns of read-only arrays, which memory maps are.
    scores = torch.as_tensor(
        logits.detach().cpu() if isinstance(logits, Tensor) else np.require(logits, requirements=["C", "W"])
    )
    if not scores.is_floating_point():
        raise TypeError(f"Expected `{argument}` to be floating-point, but got dtype {scores.dtype}.")
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(
            f"Expected `{argument}` of shape [N, C] with a sample and at least two classes, "
            f"but got shape {tuple(scores.shape)}."
        )
    return scores


def _prediction_sums(
    scores: Float[Tensor, "samples classes"],
    argument: str,
    weights: Float[Tensor, " samples"],
    groups: Int[Tensor, " samples"] | None = None,
    num_groups: int = 1,
    *,
    hard: bool,
) -> Float[Tensor, "groups classes"]:
    """The weighted sums of the predictions of each group, all being one group if there are none named."""
    num_samples, num_classes = scores.shape
    group = torch.zeros(num_samples, dtype=torch.int64) if groups is None else groups
    predicted = torch.empty(num_samples, dtype=torch.int64)
    sums = torch.zeros(num_groups, num_classes, dtype=torch.float64)
    step = max(1, _BLOCK // num_classes)
    for start in range(0, num_samples, step):
        part = slice(start, start + step)
        block, weight = scores[part], weights[part]
        top, predicted[part] = block.max(dim=1)
        wrong = torch.nonzero(~top.isfinite()).flatten()
        if len(wrong):
            first = start + int(wrong[0])
            raise ValueError(
                f"Expected `{argument}` to be finite, or −inf for a probability of zero, "
                f"but got {scores[first].tolist()[:10]} for sample {first}."
            )
        if hard:
            continue
        probs = block.double().softmax(dim=1)
        if groups is None:
            sums[0] += weight @ probs
        else:
            sums.index_add_(0, group[part], probs.mul_(weight[:, None]))
    if not hard:
        return sums
    cells = group * num_classes + predicted
    return torch.bincount(cells, weights, minlength=sums.numel()).view_as(sums)


def _read_weights(weights: ArrayLike | None, argument: str, size: int) -> Float[Tensor, " samples"]:
    if weights is None:
        return torch.ones(size, dtype=torch.float64)
    masses = torch.as_tensor(weights.detach().cpu() if isinstance(weights, Tensor) else np.array(weights))
    masses = masses.to(torch.float64)
    if masses.shape != (size,) or not (masses.isfinite() & (masses >= 0)).all() or not masses.any():
        raise ValueError(
            f"Expected `{argument}` to be one finite, non-negative number per sample, ({size},), not all "
            f"zero, but got shape {tuple(masses.shape)}, from {masses.min():g} to {masses.max():g}."
        )
    return masses


def nearest_mix(
    quadratic: Float[Tensor, "classes classes"], linear: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """Minimise ½ tᵀ·quadratic·t − linear·t over the simplex, by Mehrotra's primal-dual interior point.

    Every iterate is feasible in both problems, so t·z bounds how far t is from the least value.
    """
    num_classes = len(linear)
    scale = quadratic.diagonal().mean().item()
    quadratic, linear = quadratic / scale, linear / scale
    t = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    z = quadratic @ t - linear
    z = z - z.min() + 1
    gap = math.inf
    for _ in range(100):
        last, gap = gap, (t @ z).item()
        if gap <= 1e-16 or (gap <= 1e-13 and gap > 0.9 * last):
            break
        factor, failed = torch.linalg.cholesky_ex(quadratic + (z / t).diag())
        if failed:
            break
        centred = torch.cholesky_solve(torch.ones_like(t)[:, None], factor)[:, 0]

        dt, dz = _newton_step(-t * z, factor, centred, t, z)
        length = min(_length(t, dt), _length(z, dz))
        target = ((t + length * dt) @ (z + length * dz) / gap) ** 3 * gap / num_classes
        dt, dz = _newton_step(target - t * z - dt * dz, factor, centred, t, z)
        length = 0.995 * min(_length(t, dt), _length(z, dz))
        t, z = t + length * dt, z + length * dz
        t = t / t.sum()
    return t


def _newton_step(
    products: Float[Tensor, " classes"],
    factor: Float[Tensor, "classes classes"],
    centred: Float[Tensor, " classes"],
    t: Float[Tensor, " classes"],
    z: Float[Tensor, " classes"],
) -> tuple[Float[Tensor, " classes"], Float[Tensor, " classes"]]:
    """The step that keeps the sum and changes every t·z by `products`, to first order."""
    step = torch.cholesky_solve((products / t)[:, None], factor)[:, 0]
    step = step - centred * (step.sum() / centred.sum())
    return step, (products - z * step) / t


def _length(values: Float[Tensor, " classes"], step: Float[Tensor, " classes"]) -> float:
    falls = step < 0
    return min(1 / 0.995, (-values[falls] / step[falls]).min().item()) if falls.any() else 1 / 0.995


def _regularised_mix(
    confusion: Float[Tensor, "classes classes"],
    mean: Float[Tensor, " classes"],
    source: Float[Tensor, " classes"],
    rho: float,
) -> Float[Tensor, " classes"]:
    r"""Minimise ‖K·t − μ‖ + ρ‖t/π − 1‖ over the simplex.

    With $\kappa = \rho \lVert Kt - \mu \rVert / \lVert t / \pi - 1 \rVert$ the same t minimises
    ‖K·t − μ‖² + κ‖t/π − 1‖². Of its minimisers the ratio κ‖t/π − 1‖ / ‖K·t − μ‖ grows with κ: find where
    it is ρ. It is above ρ everywhere if a mix of no residual is best.
    """
    quadratic, linear = confusion.T @ confusion, confusion.T @ mean

    def mix_and_excess(log_kappa: float) -> tuple[Tensor, float]:
        kappa = math.exp(log_kappa)
        mix = nearest_mix(quadratic + kappa * source.square().reciprocal().diag(), linear + kappa / source)
        strength = kappa * (mix / source - 1).norm().item()
        residual = (confusion @ mix - mean).norm().item()
        return mix, math.log(max(strength, 1e-300)) - math.log(max(rho * residual, 1e-300))

    if rho == 0:
        return nearest_mix(quadratic, linear)
    if _source_is_best(confusion, mean, source, rho):
        return source
    low = math.log(1e-9 * source.min().item() ** 2)
    mix, below = mix_and_excess(low)
    if below >= 0:
        return mix
    high, above = low, below
    while above < 0:
        if high > 50:
            return source
        # The ratio grows no faster than κ, so a step of its shortfall stays below the root; 1 more ends that.
        low, below, high = high, above, high - above + 1
        mix, above = mix_and_excess(high)
    last = 0.0
    for _ in range(100):
        middle = (low * above - high * below) / (above - below) if above > below else high
        mix, excess = mix_and_excess(middle)
        if abs(excess) <= 1e-9 or high - low <= 1e-9:
            break
        # The Illinois rule: an end that stays twice counts half.
        if excess < 0:
            low, below, above = middle, excess, above / 2 if last < 0 else above
        else:
            high, above, below = middle, excess, below / 2 if last > 0 else below
        last = excess
    return mix


def _source_is_best(
    confusion: Float[Tensor, "classes classes"],
    mean: Float[Tensor, " classes"],
    source: Float[Tensor, " classes"],
    rho: float,
) -> bool:
    """Whether no step from the class mix of the source lowers the residual faster than ρ‖θ‖ grows."""
    residual = confusion @ source - mean
    if residual.norm() == 0:
        return True
    slope = confusion.T @ residual / residual.norm()
    level = (source.square() @ slope) / source.square().sum()
    return bool((source * (slope - level)).norm() <= rho)


def _describe(
    confusion: Float[Tensor, "classes classes"],
    mean: Float[Tensor, " classes"],
    masses: Float[Tensor, " classes"],
) -> ConfusionEstimate:
    prior = Prior(masses.clamp(min=0))
    _, values, axes = torch.linalg.svd(confusion)
    singular = values <= 1e-10 * values[0]
    involved = axes[singular].square().sum(dim=0) > 1e-6
    smallest = values[-1].item()
    return ConfusionEstimate(
        prior=prior,
        residual=(confusion @ prior.probs - mean).norm().item(),
        smallest_singular_value=smallest,
        condition=values[0].item() / smallest if smallest > 0 else math.inf,
        unidentifiable=tuple(torch.nonzero(involved).flatten().tolist()),
    )
