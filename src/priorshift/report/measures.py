"""Data of the figures: by class, by bin of confidence, by target prior."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from priorshift import shift
from priorshift.estimation import PriorEstimate
from priorshift.evaluation import TARGET_PRIORS, OracleGap, Spread, by_method
from priorshift.metrics import Reliability, _summaries
from priorshift.metrics._kernels import edges_of
from priorshift.predictions import Predictions
from priorshift.priors import Prior
from priorshift.report.decisions import decide, mean_probs

OracleGaps = Mapping[str, Mapping[str, Sequence[OracleGap]]]
"""Method → mix → oracle gap of each run."""


@dataclass(frozen=True)
class ClassRow:
    """One method, with or without compensation, with one number per class."""

    method: str
    compensated: bool
    spreads: tuple[Spread, ...]
    """Spread over the runs of each class, in the order of the classes of its `ByClass`."""

    @property
    def label(self) -> str:
        """Name of the row in tables and legends."""
        return f"{self.method}, compensated" if self.compensated else self.method


@dataclass(frozen=True)
class ByClass:
    """One number per class, or per group of neighbours, for every method, by descending training count."""

    names: tuple[str, ...]
    """Name of each class; of a group the first, the last and the number of its classes."""
    train_counts: tuple[int, ...]
    """Training samples of each class; of a group the mean, rounded."""
    rows: tuple[ClassRow, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in their order."""
        return tuple(dict.fromkeys(row.method for row in self.rows))


@dataclass(frozen=True, eq=False)
class PooledReliability:
    """Reliability of all runs of a method taken together, on the test set weighted to the uniform mix."""

    method: str
    compensated: bool
    bins: Reliability
    num_runs: int
    num_samples: int

    @property
    def label(self) -> str:
        """Name of the diagram."""
        return f"{self.method}, compensated" if self.compensated else self.method

    @property
    def counts(self) -> list[float]:
        """Predictions in each bin, by weight: they sum to the samples of all runs."""
        return [share * self.num_runs * self.num_samples for share in self.bins.weight.tolist()]

    @property
    def error(self) -> float:
        """The expected calibration error of the pooled runs."""
        return float(np.nansum(self.bins.weight * np.abs(self.bins.accuracy - self.bins.confidence)))

    @property
    def confidence(self) -> float:
        """Mean confidence."""
        return float(np.nansum(self.bins.weight * self.bins.confidence))

    @property
    def accuracy(self) -> float:
        """Accuracy."""
        return float(np.nansum(self.bins.weight * self.bins.accuracy))


@dataclass(frozen=True)
class ClassShare:
    """Share of a class in the target.

    Attributes:
        index: The class.
        name: Its name, where it has one.
        carried: Its share in the prior that the logits carry.
        estimated: Its estimated share.
        interval: Interval of the estimate, where there is one.
        true: The frequency of its label, where labels are known.
    """

    index: int
    name: str | None
    carried: float
    estimated: float
    interval: tuple[float, float] | None
    true: float | None

    @property
    def label(self) -> str:
        """Name of the class in tables and figures."""
        return str(self.index) if self.name is None else self.name

    @property
    def moved(self) -> bool:
        """True if there is an interval and it excludes the carried share."""
        return self.interval is not None and not self.interval[0] <= self.carried <= self.interval[1]

    @property
    def held(self) -> bool:
        """True if there are an interval and a true share, and the interval holds it."""
        if self.interval is None or self.true is None:
            return False
        return self.interval[0] <= self.true <= self.interval[1]


@dataclass(frozen=True)
class OracleGapRow:
    """Accuracy of one method on one mix by target prior, and its oracle gap, over runs.

    Attributes:
        method: The method.
        mix: The mix, as it is spelled.
        size: Unlabeled samples of a draw.
        draws: Draws of each run.
        accuracy: On the mix, for each of `priorshift.evaluation.TARGET_PRIORS`.
        gain: Accuracy with the mix estimated minus accuracy with it not used, run by run.
        gap: Accuracy with the mix known minus accuracy with it estimated, run by run.
        error: Mean absolute error of the estimate over classes.
        sampling_error: The same of the frequencies of the drawn labels.
    """

    method: str
    mix: str
    size: int
    draws: int
    accuracy: Mapping[str, Spread]
    gain: Spread
    gap: Spread
    error: Spread
    sampling_error: Spread


def class_shares(predictions: Predictions, estimate: PriorEstimate) -> list[ClassShare]:
    """Carried, estimated and true share of each class, by descending estimate.

    Args:
        predictions: Those that the estimate was made from.
        estimate: What `priorshift.estimation.estimate_prior` gave.

    Raises:
        ValueError: If the estimate is of other predictions.
    """
    for what, ours, theirs in (
        ("classes", predictions.num_classes, estimate.prior.num_classes),
        ("samples", predictions.num_samples, estimate.num_samples),
    ):
        if ours != theirs:
            raise ValueError(
                f"Expected the `predictions` that `estimate` was made from, of {theirs} {what}, "
                f"but got {ours}."
            )
    found, carried = estimate.prior.probs.tolist(), predictions.carried.probs.tolist()
    ends = estimate.intervals
    intervals = None if ends is None else list(zip(ends.lower.tolist(), ends.upper.tolist(), strict=True))
    labels = predictions.labels
    true = None if labels is None else (np.bincount(labels, minlength=len(found)) / len(labels)).tolist()
    return [
        ClassShare(
            index=index,
            name=None if predictions.class_names is None else predictions.class_names[index],
            carried=carried[index],
            estimated=found[index],
            interval=None if intervals is None else intervals[index],
            true=None if true is None else true[index],
        )
        for index in sorted(range(len(found)), key=lambda index: -found[index])
    ]


def oracle_gap_rows(oracle_gaps: OracleGaps) -> list[OracleGapRow]:
    """Accuracy by target prior and oracle gap of each method on each mix, over its runs.

    Args:
        oracle_gaps: For each method and mix the result of `priorshift.evaluation.oracle_gap` for each run.

    Raises:
        ValueError: If two methods differ in their mixes, or there is a mix without a run.
    """
    mixes = [list(of_mixes) for of_mixes in oracle_gaps.values()]
    if any(sorted(other) != sorted(mixes[0]) for other in mixes):
        raise ValueError("Expected `oracle_gaps` with the same mixes for every method, but they differ.")
    rows = []
    for method, of_mixes in oracle_gaps.items():
        for mix in mixes[0]:
            runs = of_mixes[mix]
            if not runs:
                raise ValueError(
                    f"Expected `oracle_gaps` of at least one run of {method} at {mix}, but got none."
                )
            by_run = {known: [run.accuracy[known].mean for run in runs] for known in TARGET_PRIORS}
            rows.append(
                OracleGapRow(
                    method=method,
                    mix=mix,
                    size=runs[0].size,
                    draws=runs[0].gap.runs,
                    accuracy={known: Spread.of(values) for known, values in by_run.items()},
                    gain=_spread_of_differences(by_run["estimated"], by_run["none"]),
                    gap=_spread_of_differences(by_run["oracle"], by_run["estimated"]),
                    error=Spread.of([run.error.mean for run in runs]),
                    sampling_error=Spread.of([run.sampling_error.mean for run in runs]),
                )
            )
    return rows


def class_accuracies(runs: Sequence[Predictions], *, max_points: int = 20) -> ByClass:
    """Accuracy on the test samples of each class, as the logits are and compensated to the uniform mix.

    Args:
        runs: Predictions with labels and training counts, as `priorshift.evaluation.compare` takes them.
        max_points: With more classes than that, each entry is the mean over classes of neighbouring training
            counts, so that a curve over a hundred classes can be read.
    """

    def of(run: Predictions) -> Float[np.ndarray, " classes"]:
        assert run.labels is not None
        hits = run.predicted == run.labels
        return _summaries.recalls(run.labels, hits, np.ones(run.num_samples), run.num_classes)

    return _by_class(runs, of, max_points)


def class_probs(runs: Sequence[Predictions]) -> ByClass:
    """Mean predicted probability of each class on the test set weighted to the uniform mix.

    A classifier that fits that mix predicts every class with probability 1/C on average; the distance is the
    part of the training mix that remains.

    Args:
        runs: Predictions with labels and training counts, as `priorshift.evaluation.compare` takes them.

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Figure
        2.
    """
    labels = runs[0].labels
    assert labels is not None
    weights = shift.mix_weights(labels, Prior.uniform(runs[0].num_classes))
    return _by_class(runs, lambda run: mean_probs(run, weights), runs[0].num_classes)


def pooled_reliability(runs: Sequence[Predictions], *, num_bins: int = 20) -> list[PooledReliability]:
    """Reliability of every method at the uniform mix, before and after compensation, runs pooled.

    Args:
        runs: Predictions with labels, as `priorshift.evaluation.compare` takes them.
        num_bins: Number of bins of confidence.
    """
    diagrams = []
    for method, group in by_method(runs).items():
        labels = group[0].labels
        assert labels is not None
        uniform = Prior.uniform(group[0].num_classes)
        weights = shift.mix_weights(labels, uniform)
        for compensated in (False, True):
            decided = [
                decide(run.adjusted(uniform) if compensated else run, num_bins=num_bins) for run in group
            ]
            hits, confidence, bins = (np.concatenate(each) for each in zip(*decided, strict=True))
            masses = np.tile(weights, len(group))
            diagram = _summaries.binned(bins, confidence, hits, masses, num_bins)
            reliability = Reliability(edges_of(num_bins), *diagram)
            diagrams.append(PooledReliability(method, compensated, reliability, len(group), len(labels)))
    return diagrams


def compensation_gains(runs: Sequence[Predictions], mix: str) -> dict[str, Spread]:
    """Method → accuracy with minus accuracy without compensation on a mix, taken run by run.

    Args:
        runs: Predictions with labels and training counts, as `priorshift.evaluation.compare` takes them.
        mix: Spelled as `priorshift.shift.target_prior` reads it.
    """
    first = runs[0]
    assert first.labels is not None and first.train_counts is not None
    target = shift.target_prior(mix, first.train_counts, class_names=first.class_names)
    weights = shift.mix_weights(first.labels, target)

    def accuracy(run: Predictions) -> float:
        return _summaries.mean(run.predicted == first.labels, weights)

    return {
        method: Spread.of([accuracy(run.adjusted(target)) - accuracy(run) for run in group])
        for method, group in by_method(runs).items()
    }


def _spread_of_differences(values: Sequence[float], others: Sequence[float]) -> Spread:
    return Spread.of([value - other for value, other in zip(values, others, strict=True)])


def _by_class(
    runs: Sequence[Predictions],
    of: Callable[[Predictions], Float[np.ndarray, " classes"]],
    max_points: int,
) -> ByClass:
    first = runs[0]
    counts = first.train_counts
    assert counts is not None
    order = np.argsort(-counts, kind="stable")
    groups = np.array_split(order, min(max_points, len(order)))
    names = first.class_names or tuple(map(str, range(first.num_classes)))
    uniform = Prior.uniform(first.num_classes)
    rows = []
    for method, runs_of_method in by_method(runs).items():
        for compensated in (False, True):
            values = [of(run.adjusted(uniform) if compensated else run) for run in runs_of_method]
            spreads = tuple(Spread.of([float(value[group].mean()) for value in values]) for group in groups)
            rows.append(ClassRow(method, compensated, spreads))
    return ByClass(
        names=tuple(
            names[group[0]] if len(group) == 1 else f"{names[group[0]]} … {names[group[-1]]} ({len(group)})"
            for group in groups
        ),
        train_counts=tuple(round(float(counts[group].mean())) for group in groups),
        rows=tuple(rows),
    )
