"""Class counts that decay by a rule, for classes sorted by descending training count."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from priorshift._inputs import require_at_least, require_one_of
from priorshift.priors import check_num_classes
from priorshift.shift._arguments import read_whole


def long_tail_counts(
    num_classes: int, max_count: int, imbalance: float, profile: Literal["exp", "step"] = "exp"
) -> Int[np.ndarray, " classes"]:
    r"""Images per class of a long-tailed training set, the largest class first.

    $$n_j = \lfloor N \rho^{-j/(C-1)} \rfloor \text{ (exp)}, \qquad
      n_j = N \text{ for } j < \lfloor C/2 \rfloor, \text{ else } \lfloor N/\rho \rfloor \text{ (step)}$$

    with $j = 0 … C-1$. Made for `draw_subset`, which keeps that many images of each class of a balanced data
    set. With `imbalance` 1 both profiles are balanced.

    Args:
        num_classes: Number of classes $C \ge 2$.
        max_count: Images $N$ of the largest class, 500 for CIFAR-100 and 5000 for CIFAR-10.
        imbalance: Ratio $\rho \ge 1$ of the largest to the smallest class, 100 where released code says 0.01.
        profile: `"exp"` decays from class to class; `"step"` halves the classes into large and small ones.

    Returns:
        The counts, int64, shape `[C]`, descending.

    Raises:
        ValueError: If a class would get no image, a number is out of range, or `profile` is neither of the
            two.

    Example:
        >>> long_tail_counts(5, 500, 100).tolist()
        [500, 158, 50, 15, 5]
        >>> long_tail_counts(5, 500, 100, profile="step").tolist()
        [500, 500, 5, 5, 5]
        >>> int(long_tail_counts(100, 500, 100).sum())
        10847

    Reference:
        exp: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019, in the form of
        Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019.
        step: Buda et al., Neural Networks 2018; Menon et al., "Long-tail learning via logit adjustment", ICLR
        2021, App. D.3.
    """
    require_one_of("profile", profile, ("exp", "step"))
    require_at_least("imbalance", imbalance, 1)
    if imbalance > max_count:
        raise ValueError(
            f"Expected `imbalance` to be at most `max_count`, {max_count}, but got {imbalance}: "
            f"class {num_classes - 1} would get no image."
        )
    if profile == "exp":
        return _decayed_counts(num_classes, max_count, imbalance)
    _check_sizes(num_classes, max_count)
    sizes = np.full(num_classes, float(max_count))
    sizes[num_classes // 2 :] /= imbalance
    return floor_counts(sizes)


def forward_counts(num_classes: int, max_count: int, mu: float) -> Int[np.ndarray, " classes"]:
    r"""Test images per class of LADE's forward shift, which resembles the training mix.

    $$n_j = \lfloor N \mu^{-(j-1)/(C-1)} \rfloor, \qquad j = 1 … C$$

    Class $j$ is the one with the $j$-th largest *training* count; `forward_prior` gives the same mix in class
    order and unfloored. The exponent is printed as $(j-1)/C$, without its sign; a decay from $N$ to $N/\mu$
    is meant.

    Args:
        num_classes: Number of classes $C \ge 2$.
        max_count: Test images $N$ of every class in the balanced test set, 50 for ImageNet-LT.
        mu: Ratio $\mu \ge 1$ of the largest to the smallest class. Beyond `max_count`, classes become empty.

    Returns:
        The counts, int64, shape `[C]`, descending.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> forward_counts(5, 50, 25).tolist()
        [50, 22, 10, 4, 2]

    Reference:
        Hong et al., "Disentangling label distribution for long-tailed visual recognition", CVPR 2021, §4.3.
    """
    require_at_least("mu", mu, 1)
    return _decayed_counts(num_classes, max_count, mu)


def backward_counts(num_classes: int, max_count: int, mu: float) -> Int[np.ndarray, " classes"]:
    r"""Test images per class of LADE's backward shift, the mirror image of the training mix.

    $$n_j = \lfloor N \mu^{-(C-j)/(C-1)} \rfloor, \qquad j = 1 … C$$

    Class $j$ is the one with the $j$-th largest *training* count, which here gets the fewest images of all
    for $j = 1$; `backward_prior` gives the same mix in class order and unfloored.

    Args:
        num_classes: Number of classes $C \ge 2$.
        max_count: Test images $N$ of every class in the balanced test set.
        mu: Ratio $\mu \ge 1$ of the largest to the smallest class. Beyond `max_count`, classes become empty.

    Returns:
        The counts, int64, shape `[C]`, ascending.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> backward_counts(5, 50, 25).tolist()
        [2, 4, 10, 22, 50]

    Reference:
        Hong et al., "Disentangling label distribution for long-tailed visual recognition", CVPR 2021, §4.3.
    """
    return forward_counts(num_classes, max_count, mu)[::-1].copy()


def floor_counts(sizes: Float[np.ndarray, " classes"]) -> Int[np.ndarray, " classes"]:
    """Floor sizes to counts; one that is a whole number up to float64 round-off stays that number."""
    nearest = np.round(sizes)
    whole = np.abs(sizes - nearest) <= 1e-12 * nearest
    return np.where(whole, nearest, np.floor(sizes)).astype(np.int64)


def _decayed_counts(num_classes: int, max_count: int, ratio: float) -> Int[np.ndarray, " classes"]:
    _check_sizes(num_classes, max_count)
    steps = np.arange(num_classes) / (num_classes - 1)
    return floor_counts(max_count * float(ratio) ** -steps)


def _check_sizes(num_classes: int, max_count: int) -> None:
    check_num_classes(num_classes)
    read_whole(max_count, "max_count", least=1)
