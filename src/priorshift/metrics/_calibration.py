"""Whether a stated confidence comes true: reliability by bins, and the calibration errors read off it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from priorshift.metrics._samples import Classes, Rows, Samples, Weights


@dataclass(frozen=True, eq=False)
class Reliability:
    """What a reliability diagram shows, all float64.

    Attributes:
        edges: Edges of the bins, shape `[B+1]`, from 0 to 1. Bin m is `(edges[m], edges[m+1]]`, the first
            closed at 0.
        confidence: Mean confidence in each bin, shape `[B]`; NaN in an empty one.
        accuracy: Accuracy in each bin, shape `[B]`; NaN in an empty one.
        weight: Share of the total weight in each bin, shape `[B]`, summing to 1.
    """

    edges: Float[Tensor, " edges"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    weight: Float[Tensor, " bins"]


def reliability(
    probs: Rows, labels: Classes, *, num_bins: int = 20, weights: Weights | None = None
) -> Reliability:
    r"""Mean confidence and accuracy of the samples in equal bins of confidence.

    Bin $m$ of $M$ holds the samples whose largest probability lies in $(\frac{m-1}{M}, \frac{m}{M}]$, the
    first bin also those at 0. A calibrated classifier has equal confidence and accuracy in every bin; bins of
    few samples scatter around that.

    Args:
        probs: Probabilities, shape `[N, C]`, rows summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        num_bins: Number of bins $M$.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, `num_bins` is
            below 1, or weights are not as stated.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> bins = reliability(probs, torch.tensor([0, 1, 1]), num_bins=4)
        >>> [round(value, 4) for value in bins.confidence.tolist()]
        [nan, nan, 0.6, 0.85]
        >>> bins.accuracy.tolist()
        [nan, nan, 1.0, 0.5]

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*,
        CVPR 2021, Figure 4.
    """
    edges = _edges(num_bins)
    samples = Samples(labels, "labels", weights)
    rows = samples.rows(probs, "probs")
    classes = samples.classes(labels, "labels", rows.shape[1])
    confidence, predicted = torch.empty_like(samples.weights), torch.empty_like(classes)
    for part, block in samples.probs(rows):
        torch.max(block, dim=1, out=(confidence[part], predicted[part]))
    hits = predicted == classes
    bins = _bin(confidence, edges)
    weight = samples.sums(bins, num_bins, torch.ones_like(confidence))
    return Reliability(
        edges=edges,
        confidence=samples.sums(bins, num_bins, confidence) / weight,
        accuracy=samples.sums(bins, num_bins, hits) / weight,
        weight=weight / weight.sum(),
    )


def expected_calibration_error(
    probs: Rows, labels: Classes, *, num_bins: int = 20, weights: Weights | None = None
) -> float:
    r"""The gap between confidence and accuracy, averaged over bins of confidence.

    $$\mathrm{ECE} = \frac{1}{N} \sum_{m=1}^{M} |B_m| \cdot |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$$

    with the bins of [`reliability`][priorshift.metrics.reliability]: over the confidence of the *predicted*
    class, as every implementation has them, where the paper's text has the true class. With weights, $|B_m|$
    and $N$ are sums of weights.

    **Never compare it across sample sizes.** Chance gaps in the bins count as miscalibration, so it is biased
    upward at few samples, even for a perfectly calibrated classifier, and so is the one of a test set drawn
    small. Weighting a full test set therefore equals drawing one of the target mix only as the number of
    samples grows, unlike for accuracy, Brier score and negative log-likelihood, where it does in expectation
    at any size.

    Args:
        probs: Probabilities, shape `[N, C]`, rows summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        num_bins: Number of bins $M$; the errors of different numbers are not comparable either.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, `num_bins` is
            below 1, or weights are not as stated.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> round(expected_calibration_error(probs, torch.tensor([0, 1, 1]), num_bins=4), 4)
        0.3667

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 28.
    """
    bins = reliability(probs, labels, num_bins=num_bins, weights=weights)
    return (bins.weight * (bins.accuracy - bins.confidence).abs()).nansum().item()


def classwise_calibration_error(
    probs: Rows, labels: Classes, *, num_bins: int = 20, weights: Weights | None = None
) -> float:
    r"""The calibration error of every class's probability, averaged over classes.

    $$\frac{1}{C} \sum_{j=1}^{C} \sum_{m=1}^{M} \frac{|B_{mj}|}{N}
      \left| \frac{1}{|B_{mj}|} \sum_{i \in B_{mj}} \left(1[y_i = j] - p_j(x_i)\right) \right|$$

    where $B_{mj}$ holds *all* samples whose probability of class $j$ lies in bin $m$. It sees errors in the
    probabilities of classes that are not predicted. The first bin also holds probabilities of exactly 0.

    **Never compare it across sample sizes**, nor across numbers of classes: like the expected calibration
    error it is biased upward at few samples, and with many classes nearly all probabilities are near 0.
    Weighting a full test set equals drawing one of the target mix only as the number of samples grows.

    Args:
        probs: Probabilities, shape `[N, C]`, rows summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        num_bins: Number of bins $M$.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, `num_bins` is
            below 1, or weights are not as stated.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> round(classwise_calibration_error(probs, torch.tensor([0, 1, 1]), num_bins=4), 4)
        0.3667

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 29,
        read as the standard definition: its text puts only the samples of class $j$ in $B_{mj}$, where the
        accuracy of a class's probability cannot be told.
    """
    edges = _edges(num_bins)
    samples = Samples(labels, "labels", weights)
    rows = samples.rows(probs, "probs")
    num_classes = rows.shape[1]
    classes = samples.classes(labels, "labels", num_classes)
    of_class = samples.sums(classes, num_classes, torch.ones_like(classes))
    excess = torch.zeros(num_classes, num_bins, dtype=torch.float64)
    # Nearly all probabilities are in the first bin, whose sum is what the others leave of the whole.
    for part, block in samples.probs(rows):
        weights = samples.weights[part]
        of_class -= weights @ block
        row, column = torch.nonzero(block > edges[1], as_tuple=True)
        values = block[row, column]
        residuals = weights[row] * ((classes[part][row] == column).to(values.dtype) - values)
        excess += torch.bincount(
            column * num_bins + _bin(values, edges), weights=residuals, minlength=excess.numel()
        ).view_as(excess)
    excess[:, 0] = of_class - excess[:, 1:].sum(dim=1)
    return (excess.abs().sum() / (num_classes * samples.weights.sum())).item()


def _edges(num_bins: int) -> Float[Tensor, " edges"]:
    if num_bins < 1:
        raise ValueError(f"Expected `num_bins` to be at least 1, but got {num_bins}.")
    # Division, since multiples of 1 / num_bins are not the float64 numbers nearest to m / num_bins.
    return torch.arange(num_bins + 1, dtype=torch.float64) / num_bins


def _bin(values: Float[Tensor, "*shape"], edges: Float[Tensor, " edges"]) -> Int[Tensor, "*shape"]:
    return torch.bucketize(values, edges[1:-1])
