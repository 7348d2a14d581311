"""Means that need no labels: mean class probabilities, and the effective sample size of weights."""

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike, read_array, read_weights
from priorshift.metrics import _kernels, _summaries
from priorshift.metrics._samples import read_distributions, refuse_probs


def mean_class_probs(probs: ArrayLike, *, weights: ArrayLike | None = None) -> Float[np.ndarray, " classes"]:
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
        >>> mean_class_probs(np.array([[0.75, 0.25], [0.5, 0.5]])).tolist()
        [0.625, 0.375]

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*,
        CVPR 2021, Figure 2.
    """
    rows, samples, _ = read_distributions(probs, "probs", weights)
    sums, sound = _kernels.mean_of_classes(rows, samples)
    if not sound:
        refuse_probs(rows, samples)
    means: Float[np.ndarray, " classes"] = sums / samples.weights.sum()
    return means


def effective_sample_size(weights: ArrayLike) -> float:
    r"""The number of equally weighted samples whose mean has the same variance as that of the weighted ones.

    $$n_\mathrm{eff} = \left(\sum_i w_i\right)^2 / \sum_i w_i^2$$

    $N$ for equal weights, 1 when one sample has all the weight. A weighted calibration error is biased
    about as one of this many samples would be: report it beside weighted metrics.

    Args:
        weights: Non-negative, shape `[N]`.

    Raises:
        ValueError: If a weight is negative or not finite, or all are zero.

    Example:
        >>> round(effective_sample_size(np.array([4.0, 2.0, 2.0])), 4)
        2.6667

    Reference:
        Kish, *Survey sampling*, Wiley, 1965.
    """
    masses = read_array(weights, "weights")
    return _summaries.effective_size(read_weights(masses, masses.size))
