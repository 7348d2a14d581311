"""Means that need no labels: the class mix a classifier predicts, and how many samples weights are worth."""

import torch
from jaxtyping import Float
from torch import Tensor

from priorshift.metrics._samples import Rows, Samples, Weights, read, read_weights


def mean_class_probs(probs: Rows, *, weights: Weights | None = None) -> Float[Tensor, " classes"]:
    r"""The mean predicted probability of each class, $\sum_i w_i\, p(y \mid x_i) / \sum_i w_i$.

    Over the test set a classifier was adjusted for, it is near that set's class mix; the distance shows how
    much of the training mix is left in the predictions.

    Args:
        probs: Probabilities, shape `[N, C]`, rows summing to 1 (within 1e-4).
        weights: Non-negative, shape `[N]`.

    Returns:
        Float64, shape `[C]`.

    Raises:
        ValueError: If lengths differ, a row is no distribution, or weights are not as stated.

    Example:
        >>> import torch
        >>> mean_class_probs(torch.tensor([[0.75, 0.25], [0.5, 0.5]])).tolist()
        [0.625, 0.375]

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*,
        CVPR 2021, Figure 2.
    """
    given = read(probs, "probs")
    samples = Samples(given, "probs", weights)
    rows = samples.rows(given, "probs")
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part, block in samples.probs(rows):
        total += samples.weights[part] @ block
    return total / samples.weights.sum()


def effective_sample_size(weights: Weights) -> float:
    r"""How many equally weighted samples have as steady a mean as these weighted ones.

    $$n_\mathrm{eff} = \left(\sum_i w_i\right)^2 / \sum_i w_i^2$$

    $N$ for equal weights, 1 when one sample has all the weight. A weighted calibration error is biased
    about as one of this many samples would be: report it beside weighted metrics.

    Args:
        weights: Non-negative, shape `[N]`.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.

    Example:
        >>> import torch
        >>> round(effective_sample_size(torch.tensor([4.0, 2.0, 2.0])), 4)
        2.6667

    Reference:
        Kish, *Survey sampling*, Wiley, 1965.
    """
    # Relative to the largest, so that the squares neither overflow nor vanish.
    relative = read_weights(weights)
    relative = relative / relative.max()
    return (relative.sum().square() / relative.square().sum()).item()
