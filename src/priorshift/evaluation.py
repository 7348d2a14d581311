"""Judge saved predictions on any class mix: weigh the full test set exactly, or draw from it as papers do."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from priorshift import metrics, shift
from priorshift.predictions import Predictions
from priorshift.priors import ArrayLike, Prior, as_prior

Scores = dict[str, float | None]
Summary = TypeVar("Summary")


@dataclass(frozen=True)
class Evaluation:
    r"""Scores of one set of predictions on one class mix.

    Attributes:
        target: The class mix judged on; for draws the realised one, not the one that was floored.
        compensated: Whether the logits were adjusted from their carried prior to the target.
        how: In words, how the mix was made of the test set.
        scores: Name → value: `accuracy`, `balanced_error`, `macro_f1`, `ece`, `classwise_ece`, `brier`,
            `nll`, and `many`, `medium`, `few` where training counts are known (None for an empty group).
            Over repeated draws, the mean.
        intervals: Name → (5 %, 95 %) quantiles over repeated draws; None for weighting, which draws nothing.
        effective_sample_size: $(\sum w)^2 / \sum w^2$ of the weights; for draws the number drawn.
    """

    target: Prior
    compensated: bool
    how: str
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
        >>> logits = torch.tensor([[2.0, 1.0], [0.2, 0.1], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 1, 1])
        >>> predictions = Predictions(logits=logits, labels=labels, carried=Prior([0.9, 0.1]))
        >>> for compensate in (False, True):
        ...     print(evaluate(predictions, [0.2, 0.8], compensate=compensate).scores["accuracy"])
        0.6
        0.8
    """
    labels = predictions.labels
    if labels is None:
        raise ValueError("Expected predictions with `labels` to evaluate, but they have none.")
    if draws < 0:
        raise ValueError(f"Expected `draws` to be 0 or a positive number of draws, but got {draws}.")
    mix = as_prior(target, "target", predictions.num_classes)
    if draws == 0:
        weights = shift.mix_weights(labels, mix)
        judged = predictions.adjusted(mix) if compensate else predictions
        return Evaluation(
            target=mix,
            compensated=compensate,
            how=f"all {len(labels)} samples weighted to the mix",
            scores=score(judged, weights),
            intervals=None,
            effective_sample_size=metrics.effective_sample_size(weights),
        )
    counts = shift.largest_counts(labels, mix)
    realised = Prior(counts)
    judged = predictions.adjusted(realised) if compensate else predictions
    every = torch.zeros(draws, len(labels), dtype=torch.float64)
    for draw in range(draws):
        every[draw, shift.draw_mix(labels, counts, seed + draw)] = 1.0
    tables = [score(judged, drawn) for drawn in every]
    return Evaluation(
        target=realised,
        compensated=compensate,
        how=f"{draws} draws of {int(counts.sum())} of {len(labels)} samples",
        scores={name: _summarise(tables, name, statistics.fmean) for name in tables[0]},
        intervals={
            name: (float(np.quantile(values, 0.05)), float(np.quantile(values, 0.95)))
            for name in tables[0]
            if (values := _values(tables, name))
        },
        effective_sample_size=float(counts.sum()),
    )


def score(predictions: Predictions, weights: torch.Tensor | None = None) -> Scores:
    """Every score of the predictions as they are, on their own samples, optionally weighted.

    Raises:
        ValueError: If there are no labels.
    """
    labels = predictions.labels
    if labels is None:
        raise ValueError("Expected predictions with `labels` to score, but they have none.")
    predicted, num_classes = predictions.predicted, predictions.num_classes
    log_probs = predictions.log_probs
    probs = log_probs.exp()
    scores: Scores = {
        "accuracy": metrics.accuracy(predicted, labels, weights=weights),
        "balanced_error": metrics.balanced_error(predicted, labels, num_classes, weights=weights),
        "macro_f1": metrics.macro_f1(predicted, labels, num_classes, weights=weights),
        "ece": metrics.expected_calibration_error(probs, labels, weights=weights),
        "classwise_ece": metrics.classwise_calibration_error(probs, labels, weights=weights),
        "brier": metrics.brier_score(probs, labels, weights=weights),
        "nll": metrics.negative_log_likelihood(log_probs, labels, weights=weights),
    }
    if predictions.train_counts is not None:
        groups = metrics.group_accuracy(predicted, labels, predictions.train_counts, weights=weights)
        scores |= {"many": groups.many, "medium": groups.medium, "few": groups.few}
    return scores


@dataclass(frozen=True)
class Spread:
    """A score over several runs: its mean and, from two runs on, its sample standard deviation."""

    mean: float
    sd: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value.

        Example:
            >>> print(Spread.of([0.5, 0.7]))
            0.600 ± 0.141
        """
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, len(values))

    def percent(self) -> str:
        """Mean ± standard deviation in percent, one decimal."""
        return f"{100 * self.mean:.1f}" + ("" if self.sd is None else f" ± {100 * self.sd:.1f}")

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.sd is None else f" ± {self.sd:.3f}")


@dataclass(frozen=True)
class Row:
    """One method, with or without compensation, on every mix of a comparison."""

    method: str
    compensated: bool
    spreads: dict[str, dict[str, Spread | None]]
    """Mix → score name → spread over the runs; None where the score does not exist (an empty group)."""

    @property
    def label(self) -> str:
        """Name of the row in tables and legends."""
        return f"{self.method}, compensated" if self.compensated else self.method


@dataclass(frozen=True)
class Comparison:
    """Methods, each over its runs (seeds), on a list of mixes, with and without compensation."""

    rows: tuple[Row, ...]
    mixes: tuple[str, ...]
    effective_sample_sizes: dict[str, float]
    num_samples: int


def by_method(runs: Sequence[Predictions]) -> dict[str, list[Predictions]]:
    """Group runs by their method, in order of first appearance."""
    groups: dict[str, list[Predictions]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def compare(runs: Sequence[Predictions], mixes: Sequence[str] = shift.STANDARD_MIXES) -> Comparison:
    """Judge every run on every mix, with and without compensation, and gather the runs of each method.

    Args:
        runs: Predictions on one and the same test set, with labels and training counts; those of one method
            differ by their seed.
        mixes: Spelled as `priorshift.shift.target_prior` reads them.

    Raises:
        ValueError: If there is no run, the runs are not of one test set, or one lacks labels or counts.
    """
    _check_comparable(runs)
    first = runs[0]
    assert first.train_counts is not None and first.labels is not None
    targets = {
        mix: shift.target_prior(mix, first.train_counts, class_names=first.class_names) for mix in mixes
    }
    rows = []
    for method, group in by_method(runs).items():
        for compensated in (False, True):
            spreads: dict[str, dict[str, Spread | None]] = {}
            for mix, target in targets.items():
                tables = [evaluate(run, target, compensate=compensated).scores for run in group]
                spreads[mix] = {name: _summarise(tables, name, Spread.of) for name in tables[0]}
            rows.append(Row(method, compensated, spreads))
    sizes = {
        mix: metrics.effective_sample_size(shift.mix_weights(first.labels, target))
        for mix, target in targets.items()
    }
    return Comparison(tuple(rows), tuple(mixes), sizes, first.num_samples)


def _check_comparable(runs: Sequence[Predictions]) -> None:
    if not runs:
        raise ValueError("Expected at least one set of predictions to compare, but got none.")
    for run in runs:
        name = run.method or "a run"
        if run.labels is None or run.train_counts is None:
            raise ValueError(f"Expected predictions with `labels` and `train_counts`, but {name} lacks them.")
        assert runs[0].labels is not None and runs[0].train_counts is not None
        if run.fingerprint != runs[0].fingerprint or not torch.equal(run.labels, runs[0].labels):
            raise ValueError(
                f"Expected predictions on one and the same test set, but {name} was judged on another one "
                f"(fingerprint {run.fingerprint or 'unknown'} against {runs[0].fingerprint or 'unknown'})."
            )
        if not torch.equal(run.train_counts, runs[0].train_counts):
            raise ValueError(f"Expected runs with the same `train_counts`, but those of {name} differ.")
    for method, group in by_method(runs).items():
        seeds = [run.facts["seed"] for run in group if "seed" in run.facts]
        twice = {seed for seed in seeds if seeds.count(seed) > 1}
        if twice:
            raise ValueError(
                f"Expected runs of one method to differ by their seed, but {method or 'a method'} "
                f"has seed {min(twice)} more than once."
            )


def _values(tables: Sequence[Scores], name: str) -> list[float]:
    return [value for table in tables if (value := table[name]) is not None]


def _summarise(
    tables: Sequence[Scores], name: str, summary: Callable[[Sequence[float]], Summary]
) -> Summary | None:
    values = _values(tables, name)
    return summary(values) if values else None
