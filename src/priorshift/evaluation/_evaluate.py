"""Evaluation of predictions on any class mix: the test set weighted exactly, or subsets drawn from it."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from priorshift import shift
from priorshift._inputs import ArrayLike
from priorshift.evaluation._scores import Scores, labels_of, score_tables
from priorshift.metrics._summaries import effective_size
from priorshift.predictions import Predictions
from priorshift.priors import Prior, as_prior
from priorshift.shift._evaluation_sets import weights_by_class

Summary = TypeVar("Summary")


@dataclass(frozen=True)
class Evaluation:
    r"""Scores of one set of predictions on one class mix.

    Attributes:
        target: The class mix judged on; for draws the realized one, not the one that was floored.
        compensated: Whether the logits were adjusted from their carried prior to the target.
        sampling: How the mix was made from the test set, in words.
        scores: Name → value: `accuracy`, `balanced_error`, `macro_f1`, `ece`, `classwise_ece`, `brier`,
            `nll`, and `many`, `medium`, `few` where training counts are known (None for an empty group).
            Over repeated draws, the mean.
        intervals: Name → (5 %, 95 %) quantiles over repeated draws; None for weighting, which draws nothing.
        effective_sample_size: $(\sum w)^2 / \sum w^2$ of the weights; for draws the number drawn.
    """

    target: Prior
    compensated: bool
    sampling: str
    scores: Scores
    intervals: dict[str, tuple[float, float]] | None
    effective_sample_size: float


def evaluate(
    predictions: Predictions,
    target: Prior | ArrayLike,
    *,
    compensate: bool = True,
    draws: int = 0,
    seed: int = 0,
) -> Evaluation:
    r"""Scores of the predictions on a test set whose class mix is `target`.

    Only the class mix changes: the samples of a class stay what they are (label shift).

    Args:
        predictions: Predictions with labels; every class of target mass must occur among them.
        target: The class mix to judge on, `[C]`.
        compensate: Adjust the logits from the prior they carry to the mix judged on. False judges them as
            they are.
        draws: 0 weighs the full test set to exactly `target`. A positive number draws that many subsets
            without replacement, each as large as the mix allows, and gives means and 90 % intervals over
            the draws. The papers draw once; ECE of a drawn set is biased upwards when the set is small, so
            never compare ECE across sample sizes.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are no labels, or a class that `target` gives mass to has no sample.

    Example:
        >>> logits = [[2.0, 1.0], [0.2, 0.1], [0.0, 1.0]]
        >>> predictions = Predictions(logits=logits, labels=[0, 1, 1], carried=[0.9, 0.1])
        >>> for compensate in (False, True):
        ...     print(evaluate(predictions, [0.2, 0.8], compensate=compensate).scores["accuracy"])
        0.6
        0.8
    """
    labels = labels_of(predictions, "evaluate")
    if draws < 0:
        raise ValueError(f"Expected `draws` to be 0 or a positive number of draws, but got {draws}.")
    mix = as_prior(target, "target", predictions.num_classes, names=predictions.class_names)
    if draws == 0:
        available = np.bincount(labels, minlength=predictions.num_classes)
        weights = weights_by_class(available, mix)[labels]
        return Evaluation(
            target=mix,
            compensated=compensate,
            sampling=f"all {len(labels)} samples weighted to the mix",
            scores=score_tables(predictions, [mix if compensate else None], [weights[None]])[0][0],
            intervals=None,
            effective_sample_size=effective_size(weights),
        )
    counts = shift.largest_counts(labels, mix)
    realized = Prior(counts, names=predictions.class_names)
    drawn = np.zeros((draws, len(labels)))
    for draw in range(draws):
        drawn[draw, shift.draw_mix(labels, counts, seed + draw)] = 1.0
    tables = score_tables(predictions, [realized if compensate else None], [drawn])[0]
    return Evaluation(
        target=realized,
        compensated=compensate,
        sampling=f"{draws} draws of {int(counts.sum())} of {len(labels)} samples",
        scores={name: summarize(tables, name, statistics.fmean) for name in tables[0]},
        intervals={
            name: (float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95)))
            for name in tables[0]
            if (values := values_of(tables, name))
        },
        effective_sample_size=float(counts.sum()),
    )


def summarize(
    tables: Sequence[Scores], name: str, summary: Callable[[Sequence[float]], Summary]
) -> Summary | None:
    """A summary of one score over several tables; None where no table has it."""
    values = values_of(tables, name)
    return summary(values) if values else None


def values_of(tables: Sequence[Scores], name: str) -> list[float]:
    """The values of one score in the tables that have it."""
    return [value for table in tables if (value := table[name]) is not None]
