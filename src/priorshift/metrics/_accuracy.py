"""Accuracy over samples, by class and by group of classes; F1."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from priorshift._inputs import ArrayLike, read_per_class, require_one_of
from priorshift.metrics import _summaries
from priorshift.metrics._samples import read_pair


def accuracy(predicted: ArrayLike, labels: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    r"""The share of samples whose predicted class is right.

    $$\sum_i w_i\, 1[\hat y_i = y_i] \,/\, \sum_i w_i$$

    On a test set of the deployed mix. Weights $p_t(y_i) / p_s(y_i)$ on a test set of mix $p_s$ give in
    expectation the accuracy on a test set drawn with mix $p_t$.

    Args:
        predicted: Predicted class indices, shape `[N]`.
        labels: True class indices, shape `[N]`.
        weights: Non-negative, shape `[N]`; only their ratios matter.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a class index is negative, or weights are negative, not finite or all
            zero.

    Example:
        >>> predicted, labels = np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0])
        >>> accuracy(predicted, labels)
        0.75
        >>> accuracy(predicted, labels, weights=np.array([1, 2, 2, 1]))
        0.6666666666666666
    """
    guess, truth, samples = read_pair(predicted, labels, None, weights)
    return _summaries.mean(guess == truth, samples.weights)


def per_class_accuracy(
    predicted: ArrayLike, labels: ArrayLike, num_classes: int, *, weights: ArrayLike | None = None
) -> Float[np.ndarray, " classes"]:
    r"""The accuracy among the samples of each class (its recall), NaN for a class without samples.

    $$\mathrm{acc}_y = \sum_{i: y_i = y} w_i\, 1[\hat y_i = y] \,/\, \sum_{i: y_i = y} w_i$$

    It does not depend on the class mix of the test set, and weights that are equal within a class do not
    change it.

    Args:
        predicted: Predicted class indices, shape `[N]`.
        labels: True class indices, shape `[N]`.
        num_classes: Number of classes $C$.
        weights: Non-negative, shape `[N]`.

    Returns:
        Float64, shape `[C]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a class index lies outside $0 … C-1$, or weights are not as stated.

    Example:
        >>> per_class_accuracy(np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0]), 3).tolist()
        [1.0, 0.5, nan]
    """
    guess, truth, samples = read_pair(predicted, labels, num_classes, weights)
    return _summaries.recalls(truth, guess == truth, samples.weights, num_classes)


def balanced_error(
    predicted: ArrayLike, labels: ArrayLike, num_classes: int, *, weights: ArrayLike | None = None
) -> float:
    r"""The error averaged over classes, whatever their share of the test set.

    $$\mathrm{BER} = 1 - \frac{1}{|\{y : n_y > 0\}|} \sum_{y : n_y > 0} \mathrm{acc}_y$$

    What training for a uniform target minimizes. On a test set with as many samples of each class it is one
    minus the accuracy. A class without samples is left out of the mean.

    Args:
        predicted: Predicted class indices, shape `[N]`.
        labels: True class indices, shape `[N]`.
        num_classes: Number of classes $C$.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a class index lies outside $0 … C-1$, or weights are not as stated.

    Example:
        >>> balanced_error(np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0]), 2)
        0.25

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 2.
    """
    return 1 - _summaries.mean_of_present(per_class_accuracy(predicted, labels, num_classes, weights=weights))


@dataclass(frozen=True)
class GroupAccuracy:
    """The mean of per-class accuracies among classes of many, medium and few training samples.

    Attributes:
        many: Mean over the classes of many training samples; None where there is none.
        medium: The same for the classes between.
        few: The same for the classes of few training samples.
        num_many: Number of classes that `many` is the mean of: those of the group that have test samples.
        num_medium: The same for `medium`.
        num_few: The same for `few`.
    """

    many: float | None
    medium: float | None
    few: float | None
    num_many: int
    num_medium: int
    num_few: int

    def __str__(self) -> str:
        def show(name: str, value: float | None, size: int) -> str:
            return (
                f"{name} n/a"
                if value is None
                else f"{name} {value:.4f} ({size} class{'' if size == 1 else 'es'})"
            )

        return ", ".join(
            (
                show("Many", self.many, self.num_many),
                show("Medium", self.medium, self.num_medium),
                show("Few", self.few, self.num_few),
            )
        )


def group_accuracy(
    predicted: ArrayLike,
    labels: ArrayLike,
    train_counts: ArrayLike,
    *,
    convention: Literal["lade", "menon"] = "lade",
    weights: ArrayLike | None = None,
) -> GroupAccuracy:
    r"""The mean of per-class accuracies among classes of many, medium and few training samples.

    | convention | Many | Medium | Few |
    |---|---|---|---|
    | `"lade"` | $n > 100$ | $20 \le n \le 100$ | $n < 20$ |
    | `"menon"` | $n \ge 100$ | $20 < n < 100$ | $n \le 20$ |

    Shows what a method takes from the head and gives to the tail. An empty group has no accuracy: it is None,
    shown as n/a, and never 0. A class without test samples is left out of its group's mean.

    Args:
        predicted: Predicted class indices, shape `[N]`.
        labels: True class indices, shape `[N]`.
        train_counts: Number of *training* samples of each class, shape `[C]`; a class of none is Few.
        convention: Whose boundaries to use; state it with the numbers.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If `train_counts` are not one whole number per class, `convention` is another word,
            lengths differ, a class index lies outside $0 … C-1$, or weights are not as stated.

    Example:
        >>> predicted, labels = np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1])
        >>> print(group_accuracy(predicted, labels, [500, 100]))
        Many 1.0000 (1 class), Medium 0.5000 (1 class), Few n/a
        >>> print(group_accuracy(predicted, labels, [500, 100], convention="menon"))
        Many 0.7500 (2 classes), Medium n/a, Few n/a

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*,
        CVPR 2021, Section 4; Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Section 6.
    """
    require_one_of("convention", convention, ("lade", "menon"))
    counts = _read_train_counts(train_counts)
    by_class = per_class_accuracy(predicted, labels, len(counts), weights=weights)
    means = _summaries.mean_of_groups(by_class, _summaries.groups_of(counts, convention))
    (many, num_many), (medium, num_medium), (few, num_few) = means
    return GroupAccuracy(many, medium, few, num_many, num_medium, num_few)


def macro_f1(
    predicted: ArrayLike, labels: ArrayLike, num_classes: int, *, weights: ArrayLike | None = None
) -> float:
    r"""The F1 score of each class, averaged over the classes that occur among labels or predictions.

    $$F_1(y) = \frac{2\, \mathrm{TP}_y}{n_y + \hat n_y}$$

    with $n_y$ the weight of the samples of class $y$ and $\hat n_y$ of those predicted as it; a class that is
    never hit scores 0. Unlike per-class accuracy it depends on the class mix of the test set. It is no mean
    over samples, so weighting a full test set equals drawing one of the target mix only as the number of
    samples grows.

    Args:
        predicted: Predicted class indices, shape `[N]`.
        labels: True class indices, shape `[N]`.
        num_classes: Number of classes $C$.
        weights: Non-negative, shape `[N]`.

    Raises:
        TypeError: If class indices are not whole numbers.
        ValueError: If lengths differ, a class index lies outside $0 … C-1$, or weights are not as stated.

    Example:
        >>> round(macro_f1(np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0]), 3), 4)
        0.7333
    """
    guess, truth, samples = read_pair(predicted, labels, num_classes, weights)
    return _summaries.macro_f1(guess, truth, samples.weights, num_classes)


def _read_train_counts(train_counts: ArrayLike) -> Float[np.ndarray, " classes"]:
    counts, _ = read_per_class(train_counts, "train_counts")
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0) & (counts == np.round(counts))))
    if len(wrong):
        raise ValueError(
            "Expected `train_counts` to hold non-negative whole numbers, "
            f"but got {counts[wrong[0]]} for class {wrong[0]}."
        )
    return counts
