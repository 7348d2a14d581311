"""The what-if panel: a compact copy of the predictions, which a browser scores on any class mix."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from priorshift import shift
from priorshift._blocks import for_blocks
from priorshift._inputs import ArrayLike
from priorshift.evaluation import Spread, by_method
from priorshift.metrics import _summaries
from priorshift.predictions import Predictions
from priorshift.priors import Prior, as_prior
from priorshift.report.decisions import NUM_BINS, Decisions, decide
from priorshift.report.figures import method_colors

MOST_SLIDERS = 12
"""Classes up to which each has a slider of its own."""
FEWEST_PER_CLASS = 5
"""Test samples of each class below which a copy says too little of the class."""
_NEVER = 255
"""Code of a class that a sample cannot be of."""
_TRIALS = 3
"""Random mixes on which a copy is compared with the predictions."""


@dataclass(frozen=True)
class Outcome:
    """Scores of one method in the panel, as trained or compensated, at one mix.

    Attributes:
        method: The method.
        compensated: Whether the logits were adjusted to the mix.
        scores: `accuracy`, `many`, `medium`, `few` and `ece`, over the runs; None for an empty group.
        class_accuracy: Mean over the runs for each class; NaN for a class of no mass.
    """

    method: str
    compensated: bool
    scores: dict[str, Spread | None]
    class_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """Classes whose total share one slider sets."""

    name: str
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Error:
    """Largest differences of scores between a compact copy and the predictions over several mixes."""

    accuracy: float
    groups: float
    ece: float
    num_mixes: int


@dataclass(frozen=True, eq=False)
class CompactCopy:
    r"""Predictions in one byte per number: the distance of each class to the likeliest one in log-likelihood.

    $$\frac{\log(1 + d_y)}{s}, \qquad d_y = \max_j \ell_j - \ell_y, \qquad \ell_y = f(x)[y] - \log q(y)$$

    rounded, with one step $s$ for all. A decision or a probability for any target mix depends on the
    log-likelihoods $\ell$ alone, up to a constant per sample. The rounding is fine where classes compete and
    coarse where one is out of the question.

    Attributes:
        codes: The bytes, shape `[runs, samples, classes]`; samples by class.
        step: The step $s$.
        rows: Which of the samples of the predictions these are, shape `[samples]`.
        counts: Samples of each class, shape `[classes]`.
    """

    codes: UInt8[np.ndarray, "runs samples classes"]
    step: float
    rows: Int[np.ndarray, " samples"]
    counts: Int[np.ndarray, " classes"]

    @classmethod
    def of_nothing(cls, runs: Sequence[Predictions]) -> "CompactCopy":
        """A copy of no sample, to measure the size of a page without one."""
        first = runs[0]
        return cls(
            codes=np.empty((len(runs), 0, first.num_classes), dtype=np.uint8),
            step=1.0,
            rows=np.empty(0, dtype=np.int64),
            counts=np.full(first.num_classes, first.num_samples),
        )

    def decoded(self, runs: Sequence[Predictions]) -> list[Predictions]:
        """The predictions that the panel computes from.

        Args:
            runs: Those that the copy was made of.
        """
        likelihoods = -np.expm1(np.arange(256) * self.step)
        likelihoods[_NEVER] = -np.inf
        return [
            run._with(
                logits=likelihoods[codes] + run.carried.log_probs,
                labels=None if run.labels is None else run.labels[self.rows],
            )
            for run, codes in zip(runs, self.codes, strict=True)
        ]


def compact(runs: Sequence[Predictions], max_bytes: int) -> CompactCopy | None:
    """Copies predictions in one byte per number, of as many samples as fit into so many bytes of base64.

    Where not all fit, each class keeps the same share of its samples: those evenly spaced between the ones
    that the runs find easiest and hardest, so that the class stays about as hard as it was.

    Args:
        runs: Predictions on one and the same test set, with labels.
        max_bytes: The most bytes that the copy may take as text.

    Returns:
        The copy; None if fewer than 5 samples of a class would fit and not all of them.
    """
    first = runs[0]
    labels = first.labels
    assert labels is not None
    available = np.bincount(labels, minlength=first.num_classes)
    # Base64 writes three bytes in four letters.
    room = min(len(labels), max_bytes // 4 * 3 // (len(runs) * first.num_classes))
    least = np.minimum(available, FEWEST_PER_CLASS)
    if least.sum() > room:
        return None
    rest, wanted = available - least, len(labels) - int(least.sum())
    counts = least + rest * (room - int(least.sum())) // max(wanted, 1)
    rows = _spread_rows(_ease(runs, labels), labels, available, counts)
    deepest = max(_deepest(run, rows) for run in runs)
    step = math.log1p(deepest) / (_NEVER - 1) or 1.0
    codes = np.empty((len(runs), len(rows), first.num_classes), dtype=np.uint8)
    for run, code in zip(runs, codes, strict=True):
        _encode(run, rows, step, code)
    return CompactCopy(codes=codes, step=step, rows=rows, counts=counts)


def what_if(runs: Sequence[Predictions], target: Prior | ArrayLike) -> tuple[Outcome, ...]:
    """Scores in the panel at a class mix, from the full predictions: each method, then compensated.

    Args:
        runs: Predictions on one and the same test set, with labels and training counts.
        target: The class mix, `[C]`.

    Raises:
        ValueError: If a class that `target` gives mass to has no sample, or `target` is not of $C$ classes.
    """
    mix = as_prior(target, "target", runs[0].num_classes, names=runs[0].class_names)
    return _outcomes(runs, mix, [decide(run) for run in runs])


def largest_error(copy: CompactCopy, runs: Sequence[Predictions], targets: Sequence[Prior]) -> Error:
    """Largest differences of scores between a copy and the predictions over many mixes.

    Besides the given mixes these are random ones and the training mix without the classes of each slider.

    Args:
        copy: A copy of the predictions.
        runs: The predictions.
        targets: The mixes.
    """
    mixes = list(targets)
    mixes += shift.dirichlet_priors(runs[0].num_classes, alpha=1.0, num_draws=_TRIALS, seed=0)
    counts = runs[0].train_counts
    assert counts is not None
    for part in parts(counts, [""] * len(counts)):
        without = counts.copy()
        without[list(part.classes)] = 0
        if without.any():
            mixes.append(Prior(without))
    both = [(of, [decide(run) for run in of]) for of in (runs, copy.decoded(runs))]
    errors: dict[str, float] = {}
    for mix in mixes:
        for exact, panel in zip(*(_outcomes(of, mix, as_trained) for of, as_trained in both), strict=True):
            for name, spread in exact.scores.items():
                shown = panel.scores[name]
                if spread is not None and shown is not None:
                    errors[name] = max(errors.get(name, 0.0), abs(spread.mean - shown.mean))
    return Error(
        accuracy=errors["accuracy"],
        groups=max(errors.get(group, 0.0) for group in ("many", "medium", "few")),
        ece=errors["ece"],
        num_mixes=len(mixes),
    )


def groups(train_counts: Int[np.ndarray, " classes"]) -> tuple[Part, ...]:
    """The classes of more than 100, of 20 to 100 and of fewer than 20 training samples, where there are any.

    Example:
        >>> [(group.name, group.classes) for group in groups(np.array([30, 500, 101, 2, 1]))]
        [('Many', (1, 2)), ('Medium', (0,)), ('Few', (3, 4))]
    """
    many, few = train_counts > 100, train_counts < 20
    members = {"Many": many, "Medium": ~many & ~few, "Few": few}
    return tuple(
        Part(name, tuple(np.flatnonzero(inside).tolist())) for name, inside in members.items() if inside.any()
    )


def parts(train_counts: Int[np.ndarray, " classes"], class_names: Sequence[str]) -> tuple[Part, ...]:
    """The classes of each slider: one class if there are at most 12, else a group, else a third of them.

    Example:
        >>> names = [f"class {index}" for index in range(13)]
        >>> [part.name for part in parts(np.array([7, 9]), names[:2])]
        ['class 1', 'class 0']
        >>> [(part.name, len(part.classes)) for part in parts(np.arange(10, 140, 10), names)]
        [('Many', 3), ('Medium', 9), ('Few', 1)]
        >>> [(part.name, len(part.classes)) for part in parts(np.full(13, 500), names)]
        [('Most frequent third', 5), ('Middle third', 4), ('Rarest third', 4)]
    """
    order = np.argsort(-train_counts, kind="stable")
    if len(order) <= MOST_SLIDERS:
        return tuple(Part(class_names[index], (index,)) for index in order.tolist())
    if len(found := groups(train_counts)) > 1:
        return found
    names = ("Most frequent third", "Middle third", "Rarest third")
    return tuple(
        Part(name, tuple(third.tolist())) for name, third in zip(names, np.array_split(order, 3), strict=True)
    )


def panel_data(
    runs: Sequence[Predictions], copy: CompactCopy, presets: Mapping[str, Prior]
) -> dict[str, Any]:
    """The data for the script of the panel, besides the codes.

    Args:
        runs: The predictions that the copy was made of.
        copy: The copy.
        presets: Mixes to start from, by name; the panel starts with the first.
    """
    first = runs[0]
    assert first.train_counts is not None
    names = first.class_names or tuple(map(str, range(first.num_classes)))
    methods = list(by_method(runs))
    colors = method_colors(methods)
    return {
        "classes": names,
        "train_counts": first.train_counts,
        "counts": copy.counts,
        "step": copy.step,
        "methods": [{"name": method, "color": colors[method]} for method in methods],
        "runs": [{"method": methods.index(run.method), "carried": run.carried.probs} for run in runs],
        "groups": groups(first.train_counts),
        "parts": parts(first.train_counts, names),
        "presets": [{"name": name, "shares": mix.probs} for name, mix in presets.items()],
    }


def as_base64(copy: CompactCopy) -> str:
    """The codes as text."""
    return base64.b64encode(copy.codes.tobytes()).decode()


def _outcomes(
    runs: Sequence[Predictions], mix: Prior, as_trained: Sequence[Decisions]
) -> tuple[Outcome, ...]:
    """Scores of runs on one test set at a mix; their decisions as trained do not depend on it."""
    labels = runs[0].labels
    assert labels is not None
    weights = shift.mix_weights(labels, mix)
    judged: dict[tuple[str, bool], list[tuple[dict[str, float | None], Float[np.ndarray, " classes"]]]] = {}
    for run, trained in zip(runs, as_trained, strict=True):
        for compensated in (False, True):
            decisions = decide(run.adjusted(mix)) if compensated else trained
            judged.setdefault((run.method, compensated), []).append(_scores(run, decisions, weights))
    outcomes = []
    for method in by_method(runs):
        for compensated in (False, True):
            group = judged[method, compensated]
            scores = {}
            for name in group[0][0]:
                values = [value for table, _ in group if (value := table[name]) is not None]
                scores[name] = Spread.of(values) if values else None
            by_class = np.mean([accuracies for _, accuracies in group], axis=0)
            outcomes.append(Outcome(method, compensated, scores, tuple(by_class.tolist())))
    return tuple(outcomes)


def _scores(
    run: Predictions, decisions: Decisions, weights: Float[np.ndarray, " samples"]
) -> tuple[dict[str, float | None], Float[np.ndarray, " classes"]]:
    """Scores by name, and the accuracy of each class."""
    assert run.labels is not None and run.train_counts is not None
    hits, confidence, bins = decisions
    by_class = _summaries.recalls(run.labels, hits, weights, run.num_classes)
    parts = _summaries.mean_of_groups(by_class, _summaries.groups_of(run.train_counts, "lade"))
    diagram = _summaries.binned(bins, confidence, hits, weights, NUM_BINS)
    scores = {
        "accuracy": _summaries.mean(hits, weights),
        **{name: mean for name, (mean, _) in zip(("many", "medium", "few"), parts, strict=True)},
        "ece": _summaries.calibration_error(diagram),
    }
    return scores, by_class


def _ease(runs: Sequence[Predictions], labels: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Log-probability of the label at the uniform mix, summed over the runs."""
    uniform = Prior.uniform(runs[0].num_classes)
    ease = np.zeros(len(labels))
    for run in runs:
        logits = run.adjusted(uniform).logits

        def add(part: slice, logits: Float[np.ndarray, "samples classes"] = logits) -> None:
            block = logits[part].astype(np.float64)
            block -= block.max(axis=1, keepdims=True)
            own = block[np.arange(len(block)), labels[part]]
            ease[part] += own - np.log(np.exp(block, out=block).sum(axis=1))

        for_blocks(add, *logits.shape)
    return ease


def _spread_rows(
    ease: Float[np.ndarray, " samples"],
    labels: Int[np.ndarray, " samples"],
    available: Int[np.ndarray, " classes"],
    counts: Int[np.ndarray, " classes"],
) -> Int[np.ndarray, " rows"]:
    """As many samples of each class as `counts` says, evenly spaced from the easiest to the hardest."""
    by_class = np.lexsort((-ease, labels))
    starts = available.cumsum() - available
    return np.concatenate(
        [
            by_class[start + ((np.arange(kept) + 0.5) * (size / max(kept, 1))).astype(np.int64)]
            for start, size, kept in zip(starts.tolist(), available.tolist(), counts.tolist(), strict=True)
        ]
    )


def _deepest(run: Predictions, rows: Int[np.ndarray, " rows"]) -> float:
    """The largest finite distance."""

    def deepest(part: slice) -> float:
        distances = _distances(run, rows[part])
        return float(distances.max(initial=0.0, where=np.isfinite(distances)))

    return max(for_blocks(deepest, len(rows), run.num_classes))


def _encode(
    run: Predictions,
    rows: Int[np.ndarray, " rows"],
    step: float,
    codes: UInt8[np.ndarray, "rows classes"],
) -> None:
    def encode(part: slice) -> None:
        distances = _distances(run, rows[part])
        np.log1p(distances, out=distances)
        distances /= step
        np.minimum(np.rint(distances, out=distances), _NEVER, out=distances)
        codes[part] = distances

    for_blocks(encode, len(rows), run.num_classes)


def _distances(run: Predictions, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows classes"]:
    """Log-likelihood of the likeliest class minus that of each class, in nats, float64."""
    likelihoods: Float[np.ndarray, "rows classes"] = run.logits[rows] - run.carried.log_probs
    np.subtract(likelihoods.max(axis=1, keepdims=True), likelihoods, out=likelihoods)
    return likelihoods
