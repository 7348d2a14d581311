"""Evaluate on a shifted class mix: weigh the samples of a test set, or draw from it."""

import numpy as np
from jaxtyping import Float, Int

from priorshift._inputs import ArrayLike, read_labels
from priorshift.priors import Prior, as_prior, name_classes
from priorshift.shift._arguments import read_counts, read_whole
from priorshift.shift._profiles import floor_counts
from priorshift.shift._subsets import draw_rows


def mix_weights(labels: ArrayLike, target: Prior | ArrayLike) -> Float[np.ndarray, " n"]:
    r"""Weights under which a labelled set has exactly the target class mix.

    $$w_i = N \frac{t_{y_i}}{n_{y_i}}, \qquad \sum_i w_i = N$$

    A weighted mean over the samples is then the mean of the per-class means under the target. Every sample is
    used and nothing is rounded, so it has no more variance than the mean over a drawn set (`draw_mix`).

    Args:
        labels: Class indices, shape `[N]`, or class names where `target` has them.
        target: The class mix to evaluate on, shape `[C]`; samples of a class of zero mass get weight 0.

    Returns:
        The weights, float64, shape `[N]`.

    Raises:
        TypeError: If `labels` are neither whole numbers nor class names.
        ValueError: If a class with target mass has no sample, or a label is outside the classes.

    Example:
        >>> mix_weights([0, 0, 0, 1], [0.5, 0.5]).tolist()
        [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    classes, available, prior = _labels_counts_target(labels, target)
    weights: Float[np.ndarray, " n"] = weights_by_class(available, prior)[classes]
    return weights


def draw_mix(labels: ArrayLike, counts: ArrayLike, seed: int) -> Int[np.ndarray, " m"]:
    """Draw a given number of samples of each class, as the papers build shifted test sets.

    They are drawn without replacement. The target prior of the drawn set is `Prior(counts)`, the *realized*
    mix, not the one that the counts were floored from. Row numbers take the place of image hashes in
    `draw_subset`: the draw depends on the row order, draws of one seed are nested, and the draws of several
    seeds show the spread that drawing alone gives a score.

    Args:
        labels: Class indices, shape `[N]`, or class names where `counts` has them.
        counts: Samples wanted of each class, shape `[C]`, such as `largest_counts` gives; 0 leaves a class
            out.
        seed: Non-negative. Another seed gives other samples.

    Returns:
        Row indices, int64, shape `[counts.sum()]`, ascending.

    Raises:
        TypeError: If `labels` or `seed` are not whole numbers (or class names).
        ValueError: If a class has too few samples, or a label is outside the classes.

    Example:
        >>> draw_mix([0, 0, 0, 0, 1, 1, 1, 1], counts=[3, 1], seed=0).tolist()
        [0, 1, 3, 4]

    Reference:
        Hong et al., "Disentangling label distribution for long-tailed visual recognition", CVPR 2021, §4.3.
    """
    wanted, names = read_counts(counts, "counts")
    classes = read_labels(labels, size=len(labels), num_classes=len(wanted), names=names)
    seed = read_whole(seed, "seed", least=0)
    return draw_rows([str(row) for row in range(len(classes))], classes, wanted, seed, "counts")


def largest_counts(labels: ArrayLike, target: Prior | ArrayLike) -> Int[np.ndarray, " classes"]:
    r"""The largest class counts of a given mix that a labelled set can supply without replacement.

    $$m_c = \lfloor M t_c \rfloor, \qquad M = \min_{c:\, t_c > 0} n_c / t_c$$

    From a balanced set and `forward_prior` these are LADE's `forward_counts`. A class of little target mass
    may floor to 0.

    Args:
        labels: Class indices, shape `[N]`, or class names where `target` has them.
        target: The class mix wanted, shape `[C]`.

    Returns:
        The counts for `draw_mix`, int64, shape `[C]`.

    Raises:
        TypeError: If `labels` are neither whole numbers nor class names.
        ValueError: If a class with target mass has no sample, or a label is outside the classes.

    Example:
        >>> largest_counts([0] * 10 + [1] * 10 + [2] * 10, [0.6, 0.3, 0.1]).tolist()
        [10, 5, 1]
    """
    _, available, prior = _labels_counts_target(labels, target)
    probs = prior.probs
    occurs = probs > 0
    with np.errstate(over="ignore"):
        size = (available[occurs] / probs[occurs]).min()
    return floor_counts(size * probs)


def weights_by_class(available: Int[np.ndarray, " classes"], prior: Prior) -> Float[np.ndarray, " classes"]:
    """The weight of the samples of each class, from the number of samples of each; see `mix_weights`."""
    _require_present(available, prior)
    weights: Float[np.ndarray, " classes"] = available.sum() * prior.probs / np.maximum(available, 1)
    return weights


def _labels_counts_target(
    labels: ArrayLike, target: Prior | ArrayLike
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " classes"], Prior]:
    prior = as_prior(target, "target")
    classes = read_labels(labels, size=len(labels), num_classes=len(prior), names=prior.names)
    available = np.bincount(classes, minlength=len(prior))
    _require_present(available, prior)
    return classes, available, prior


def _require_present(available: Int[np.ndarray, " classes"], prior: Prior) -> None:
    absent = np.flatnonzero((available == 0) & (prior.probs > 0)).tolist()
    if absent:
        raise ValueError(
            f"Expected `labels` to hold every class that `target` gives mass to, but there is no sample of "
            f"{name_classes(absent, prior.names)}."
        )
