"""Reliability by bins of confidence, and the calibration errors computed from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from priorshift._inputs import ArrayLike
from priorshift.metrics import _kernels, _summaries
from priorshift.metrics._samples import Rows, Samples, read_distributions, refuse_probs


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence and accuracy by bins of confidence, as a reliability diagram shows them; all float64.

    Attributes:
        edges: Edges of the bins, shape `[B+1]`, from 0 to 1. Bin m is `(edges[m], edges[m+1]]`, the first
            closed at 0.
        confidence: Mean confidence in each bin, shape `[B]`; NaN in an empty one.
        accuracy: Accuracy in each bin, shape `[B]`; NaN in an empty one.
        weight: Share of the total weight in each bin, shape `[B]`, summing to 1.
    """

    edges: Float[np.ndarray, " edges"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    weight: Float[np.ndarray, " bins"]


def reliability(
    probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 20, weights: ArrayLike | None = None
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
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> bins = reliability(probs, np.array([0, 1, 1]), num_bins=4)
        >>> [round(value, 4) for value in bins.confidence.tolist()]
        [nan, nan, 0.6, 0.85]
        >>> bins.accuracy.tolist()
        [nan, nan, 1.0, 0.5]

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*,
        CVPR 2021, Figure 4.
    """
    rows, classes, samples = _read(probs, labels, num_bins, weights)
    confidence, predicted, sound = _kernels.confidences(rows, samples)
    if not sound:
        refuse_probs(rows, samples)
    edges = _kernels.edges_of(num_bins)
    bins = _kernels.bins_of(confidence, edges)
    return Reliability(
        edges, *_summaries.binned(bins, confidence, predicted == classes, samples.weights, num_bins)
    )


def expected_calibration_error(
    probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 20, weights: ArrayLike | None = None
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
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> round(expected_calibration_error(probs, np.array([0, 1, 1]), num_bins=4), 4)
        0.3667

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 28.
    """
    bins = reliability(probs, labels, num_bins=num_bins, weights=weights)
    return _summaries.calibration_error(np.stack([bins.confidence, bins.accuracy, bins.weight]))


def classwise_calibration_error(
    probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 20, weights: ArrayLike | None = None
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
        >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
        >>> round(classwise_calibration_error(probs, np.array([0, 1, 1]), num_bins=4), 4)
        0.3667

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 29,
        read as the standard definition: its text puts only the samples of class $j$ in $B_{mj}$, where the
        accuracy of a class's probability cannot be told.
    """
    rows, classes, samples = _read(probs, labels, num_bins, weights)
    excess, sound = _kernels.class_excess(rows, classes, samples, num_bins)
    if not sound:
        refuse_probs(rows, samples)
    return _summaries.classwise_error(excess, samples.weights.sum())


def _read(
    probs: ArrayLike, labels: ArrayLike, num_bins: int, weights: ArrayLike | None
) -> tuple[Rows, Int[np.ndarray, " kept"], Samples]:
    if num_bins < 1:
        raise ValueError(f"Expected `num_bins` to be at least 1, but got {num_bins}.")
    rows, samples, names = read_distributions(probs, "probs", weights)
    return rows, samples.read_classes(labels, "labels", rows.shape[1], names), samples
