"""Metrics from the numbers of each sample; arguments are trusted."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Weights = Float[np.ndarray, " kept"]
Classes = Int[np.ndarray, " kept"]


def mean(values: Shaped[np.ndarray, " kept"], weights: Weights) -> float:
    """The weighted mean over samples."""
    return float((weights * values).sum() / weights.sum())


def recalls(
    classes: Classes, hits: Bool[np.ndarray, " kept"], weights: Weights, num_classes: int
) -> Float[np.ndarray, " classes"]:
    """The share of hits among the samples of each class, NaN for a class without samples."""
    totals = np.bincount(classes, weights, num_classes)
    with np.errstate(invalid="ignore"):
        shares: Float[np.ndarray, " classes"] = np.bincount(classes, weights * hits, num_classes) / totals
    return shares


def mean_of_present(values: Float[np.ndarray, " classes"]) -> float:
    """The mean over the classes that have a value."""
    return float(values[~np.isnan(values)].mean())


def macro_f1(predicted: Classes, classes: Classes, weights: Weights, num_classes: int) -> float:
    """The F1 score averaged over the classes that occur."""
    hits = np.bincount(classes, weights * (predicted == classes), num_classes)
    occurring = np.bincount(classes, weights, num_classes) + np.bincount(predicted, weights, num_classes)
    with np.errstate(invalid="ignore"):
        return mean_of_present(2 * hits / occurring)


def binned(
    bins: Int[np.ndarray, " kept"],
    confidence: Float[np.ndarray, " kept"],
    hits: Bool[np.ndarray, " kept"],
    weights: Weights,
    num_bins: int,
) -> Float[np.ndarray, "3 bins"]:
    """Mean confidence, accuracy and share of the weight of each bin."""
    masses = np.bincount(bins, weights, num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights * each, num_bins) / masses for each in (confidence, hits)]
    return np.stack([*means, masses / masses.sum()])


def calibration_error(bins: Float[np.ndarray, "3 bins"]) -> float:
    """The expected calibration error of what `binned` gives."""
    confidence, accuracy, share = bins
    return float(np.nansum(share * np.abs(accuracy - confidence)))


def classwise_error(excess: Float[np.ndarray, "classes bins"], total: float) -> float:
    """The classwise calibration error of the residuals by bin, and of the sum of all weights."""
    return float(np.abs(excess).sum() / (len(excess) * total))


def mean_of_groups(
    by_class: Float[np.ndarray, " classes"], groups: Sequence[Bool[np.ndarray, " classes"]]
) -> list[tuple[float | None, int]]:
    """The mean over the tested classes of each group, None where there is none, and their number."""
    tested = ~np.isnan(by_class)
    members = [by_class[group & tested] for group in groups]
    return [(float(group.mean()) if len(group) else None, len(group)) for group in members]


def groups_of(counts: Shaped[np.ndarray, " classes"], convention: str) -> list[Bool[np.ndarray, " classes"]]:
    """Whether each class has many, medium or few training samples, by a convention that is known."""
    if convention == "lade":
        many, few = counts > 100, counts < 20
    else:
        many, few = counts >= 100, counts <= 20
    return [many, ~many & ~few, few]


def effective_size(weights: Float[np.ndarray, " samples"]) -> float:
    """The effective sample size of weights."""
    # Relative to the largest, so that the squares neither overflow nor vanish.
    relative = weights / weights.max()
    return float(relative.sum() ** 2 / np.square(relative).sum())
