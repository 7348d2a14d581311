"""Proper scores, which the true probabilities minimize in expectation."""

from priorshift._inputs import ArrayLike
from priorshift.metrics import _kernels, _summaries
from priorshift.metrics._samples import read_distributions, refuse_log_probs, refuse_probs


def brier_score(probs: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    r"""The squared error of the probabilities, summed over classes (0 to 2), mean over samples.

    $$\frac{1}{N} \sum_{i=1}^{N} \sum_{c=1}^{C} \left(p(y_i = c \mid x_i) - 1[y_i = c]\right)^2$$

    Rewards calibration and sharpness together, and is comparable across sample sizes. Weighting a full test
    set equals drawing one of the target mix in expectation.

    Args:
        probs: Probabilities, shape `[N, C]`, rows summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, or weights
            are not as stated.

    Example:
        >>> brier_score([[0.75, 0.25], [0.5, 0.5]], [0, 1])
        0.3125

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 30,
        with the mean over samples that its tables show.
    """
    rows, samples, names = read_distributions(probs, "probs", weights)
    classes = samples.read_classes(labels, "labels", rows.shape[1], names)
    squares, sound = _kernels.squared_errors(rows, classes, samples)
    if not sound:
        refuse_probs(rows, samples)
    return _summaries.mean(squares, samples.weights)


def negative_log_likelihood(
    log_probs: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    r"""The mean negative log-probability of the true class, in nats.

    $$-\frac{1}{N} \sum_{i=1}^{N} \log p(y_i \mid x_i)$$

    Takes *log*-probabilities, such as `scipy.special.log_softmax(logits, axis=1)`, since a probability that
    underflows to 0 has lost its logarithm. It is $+\infty$ once a true class has probability 0, as under a
    target prior that gives that class no mass. Weighting a full test set equals drawing one of the target mix
    in expectation.

    Args:
        log_probs: Log-probabilities, shape `[N, C]`, the exponentials of each row summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, or weights
            are not as stated.

    Example:
        >>> import numpy as np
        >>> log_probs = np.log([[0.75, 0.25], [0.5, 0.5]])
        >>> round(negative_log_likelihood(log_probs, [0, 1]), 4)
        0.4904

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 31,
        with the mean over samples that its tables show.
    """
    rows, samples, names = read_distributions(log_probs, "log_probs", weights)
    classes = samples.read_classes(labels, "labels", rows.shape[1], names)
    nll, sound = _kernels.true_nll(rows, classes, samples)
    if not sound:
        refuse_log_probs(rows, samples)
    return _summaries.mean(nll, samples.weights)
