"""All scores of a set of predictions, from one pass over its logits."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from priorshift._inputs import ArrayLike, read_weights
from priorshift.metrics import _summaries
from priorshift.metrics._kernels import Outcome, bins_of, edges_of, outcomes
from priorshift.predictions import Predictions
from priorshift.priors import Prior

Scores: TypeAlias = dict[str, float | None]
"""A score by its name; None for a group of classes that is empty."""

NUM_BINS = 20
"""Bins of the calibration errors, as the papers have them."""


def score(predictions: Predictions, weights: ArrayLike | None = None) -> Scores:
    """Every score of the predictions as they are, on their own samples.

    Args:
        predictions: With labels.
        weights: Non-negative, shape `[N]`; None weighs every sample 1.

    Raises:
        ValueError: If there are no labels, or weights are negative, not finite or all zero.

    Example:
        >>> predictions = Predictions(logits=[[2.0, 1.0], [0.2, 0.1]], labels=[0, 1], carried=[0.9, 0.1])
        >>> score(predictions)["accuracy"], score(predictions, [3, 1])["accuracy"]
        (0.5, 0.75)
    """
    labels = labels_of(predictions, "score")
    masses = read_weights(weights, len(labels))
    return score_tables(predictions, [None], [masses[None]])[0][0]


def labels_of(predictions: Predictions, purpose: str) -> Int[np.ndarray, " samples"]:
    """The labels of predictions, or a refusal that names what they are wanted for."""
    if predictions.labels is None:
        raise ValueError(f"Expected predictions with `labels` to {purpose}, but they have none.")
    return predictions.labels


def score_tables(
    predictions: Predictions,
    targets: Sequence[Prior | None],
    weights: Sequence[Float[np.ndarray, "weightings samples"]],
) -> list[list[Scores]]:
    """Scores for each target prior under each of its weightings; the logits are read once.

    Args:
        predictions: With labels.
        targets: Priors to adjust the logits to; None leaves them as they are.
        weights: For each target one or more weightings of the samples.

    Raises:
        ValueError: If the logits of a sample of positive weight rule out every class of target mass.
    """
    assert predictions.labels is not None
    classes, num_classes = predictions.labels, predictions.num_classes
    used = np.logical_or.reduce([(masses > 0).any(axis=0) for masses in weights])
    kept = None if used.all() else np.flatnonzero(used)
    if kept is not None:
        classes, weights = classes[kept], [masses[:, kept] for masses in weights]
    carried = predictions.carried.require_positive("carried").log_probs
    moves = [None if target is None else target.log_probs - carried for target in targets]
    found = outcomes(predictions.logits, classes, kept, moves, weights, num_bins=NUM_BINS)
    groups = None
    if predictions.train_counts is not None:
        groups = _summaries.groups_of(predictions.train_counts, "lade")
    for outcome, masses in zip(found, weights, strict=True):
        _require_probabilities(outcome, masses, kept)
    return [
        _tables(outcome, classes, masses, num_classes, groups)
        for outcome, masses in zip(found, weights, strict=True)
    ]


def _tables(
    outcome: Outcome,
    classes: Int[np.ndarray, " kept"],
    weights: Float[np.ndarray, "weightings kept"],
    num_classes: int,
    groups: Sequence[Bool[np.ndarray, " classes"]] | None,
) -> list[Scores]:
    predicted, confidence = outcome.predicted, outcome.confidence
    hits, bins = predicted == classes, bins_of(confidence, edges_of(NUM_BINS))
    tables = []
    for masses, excess in zip(weights, outcome.excess, strict=True):
        by_class = _summaries.recalls(classes, hits, masses, num_classes)
        diagram = _summaries.binned(bins, confidence, hits, masses, NUM_BINS)
        # A true class without target mass has infinite loss, and no weight.
        nll = np.where(masses > 0, outcome.nll, 0)
        scores: Scores = {
            "accuracy": _summaries.mean(hits, masses),
            "balanced_error": 1 - _summaries.mean_of_present(by_class),
            "macro_f1": _summaries.macro_f1(predicted, classes, masses, num_classes),
            "ece": _summaries.calibration_error(diagram),
            "classwise_ece": _summaries.classwise_error(excess, float(masses.sum())),
            "brier": _summaries.mean(outcome.squares, masses),
            "nll": _summaries.mean(nll, masses),
        }
        if groups is not None:
            means = _summaries.mean_of_groups(by_class, groups)
            scores |= {name: mean for name, (mean, _) in zip(("many", "medium", "few"), means, strict=True)}
        tables.append(scores)
    return tables


def _require_probabilities(
    outcome: Outcome, weights: Float[np.ndarray, "weightings kept"], kept: Int[np.ndarray, " kept"] | None
) -> None:
    if not outcome.undefined.any():
        return
    wrong = np.flatnonzero(outcome.undefined & (weights > 0).any(axis=0))
    if len(wrong):
        first = wrong[0] if kept is None else kept[wrong[0]]
        raise ValueError(
            "Expected `logits` below +∞, and finite for a class of target mass for each sample of positive "
            f"weight, but sample {first} gives no probabilities ({len(wrong)} of {len(outcome.undefined)} "
            "samples)."
        )
