"""Proper scores: the best expected score is had by stating the true probabilities."""

import torch

from priorshift.metrics._samples import Classes, Rows, Samples, Weights


def brier_score(probs: Rows, labels: Classes, *, weights: Weights | None = None) -> float:
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
        >>> probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> brier_score(probs, torch.tensor([0, 1]))
        0.3125

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 30,
        with the mean over samples that its tables show.
    """
    samples = Samples(labels, "labels", weights)
    rows = samples.rows(probs, "probs")
    classes = samples.classes(labels, "labels", rows.shape[1])
    squares = torch.empty_like(samples.weights)
    for part, errors in samples.probs(rows):
        errors[torch.arange(len(errors)), classes[part]] -= 1
        squares[part] = errors.square_().sum(dim=1)
    return samples.mean(squares)


def negative_log_likelihood(log_probs: Rows, labels: Classes, *, weights: Weights | None = None) -> float:
    r"""The mean negative log-probability of the true class, in nats.

    $$-\frac{1}{N} \sum_{i=1}^{N} \log p(y_i \mid x_i)$$

    Takes *log*-probabilities, `logits.log_softmax(-1)`, since a probability that underflows to 0 has lost its
    logarithm. It is $+\infty$ once a true class has probability 0, as under a target prior that gives that
    class no mass. Weighting a full test set equals drawing one of the target mix in expectation.

    Args:
        log_probs: Log-probabilities, shape `[N, C]`, the exponentials of each row summing to 1 (within 1e-4).
        labels: True class indices, shape `[N]`.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a row is no distribution, a label lies outside $0 … C-1$, or weights
            are not as stated.

    Example:
        >>> log_probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
        >>> round(negative_log_likelihood(log_probs, torch.tensor([0, 1])), 4)
        0.4904

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Eq. 31,
        with the mean over samples that its tables show.
    """
    samples = Samples(labels, "labels", weights)
    rows = samples.rows(log_probs, "log_probs")
    classes = samples.classes(labels, "labels", rows.shape[1])
    of_truth = torch.empty_like(samples.weights)
    for part, block in samples.log_probs(rows):
        of_truth[part] = block[torch.arange(len(block)), classes[part]]
    return samples.mean(-of_truth)
