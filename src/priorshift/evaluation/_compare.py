"""Comparison of methods, each over its runs, on several class mixes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from priorshift import shift
from priorshift.evaluation._evaluate import summarize
from priorshift.evaluation._scores import Scores, score_tables
from priorshift.metrics._summaries import effective_size
from priorshift.predictions import Predictions
from priorshift.priors import Prior, as_prior
from priorshift.shift._evaluation_sets import weights_by_class


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
        mix: as_prior(
            shift.target_prior(mix, first.train_counts, class_names=first.class_names),
            "mixes",
            first.num_classes,
            names=first.class_names,
        )
        for mix in mixes
    }
    available = np.bincount(first.labels, minlength=first.num_classes)
    weights = np.empty((len(targets), first.num_samples))
    for index, target in enumerate(targets.values()):
        weights[index] = weights_by_class(available, target)[first.labels]
    rows = []
    for method, group in by_method(runs).items():
        of_runs = [_scores_on(run, list(targets.values()), weights) for run in group]
        for compensated in (False, True):
            spreads: dict[str, dict[str, Spread | None]] = {}
            for index, mix in enumerate(targets):
                tables = [scores[compensated][index] for scores in of_runs]
                spreads[mix] = {name: summarize(tables, name, Spread.of) for name in tables[0]}
            rows.append(Row(method, compensated, spreads))
    sizes = {mix: effective_size(weights[index]) for index, mix in enumerate(targets)}
    return Comparison(tuple(rows), tuple(mixes), sizes, first.num_samples)


def _scores_on(
    run: Predictions, targets: Sequence[Prior], weights: Float[np.ndarray, "mixes samples"]
) -> tuple[list[Scores], list[Scores]]:
    """Scores on each mix, without and with compensation; the logits are read once."""
    of_mixes = [weights[index, None] for index in range(len(targets))]
    plain, *compensated = score_tables(run, [None, *targets], [weights, *of_mixes])
    return plain, [tables[0] for tables in compensated]


def _check_comparable(runs: Sequence[Predictions]) -> None:
    if not runs:
        raise ValueError("Expected at least one set of predictions to compare, but got none.")
    for run in runs:
        name = run.method or "a run"
        if run.labels is None or run.train_counts is None:
            raise ValueError(f"Expected predictions with `labels` and `train_counts`, but {name} lacks them.")
        assert runs[0].labels is not None and runs[0].train_counts is not None
        if run.fingerprint != runs[0].fingerprint or not np.array_equal(run.labels, runs[0].labels):
            raise ValueError(
                f"Expected predictions on one and the same test set, but {name} was judged on another one "
                f"(fingerprint {run.fingerprint or 'unknown'} against {runs[0].fingerprint or 'unknown'})."
            )
        if not np.array_equal(run.train_counts, runs[0].train_counts):
            raise ValueError(f"Expected runs with the same `train_counts`, but those of {name} differ.")
    for method, group in by_method(runs).items():
        seeds = [run.facts["seed"] for run in group if "seed" in run.facts]
        twice = {seed for seed in seeds if seeds.count(seed) > 1}
        if twice:
            raise ValueError(
                f"Expected runs of one method to differ by their seed, but {method or 'a method'} "
                f"has seed {min(twice)} more than once."
            )
