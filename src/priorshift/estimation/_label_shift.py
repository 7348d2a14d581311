"""Can any class mix explain these predictions, or has more than the mix changed?"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cholesky, solve_triangular
from scipy.special import gammaincc

from priorshift._blocks import for_blocks
from priorshift._inputs import ArrayLike, Names, align, read_labels, read_scores, require_at_least
from priorshift.estimation._simplex import nearest_mix
from priorshift.priors import name_classes

_LEAST = 5
"""Samples that a cell must be expected to hold for a chi-square to describe it."""

_ENOUGH = 100
"""Labelled samples of a class that are enough however many of it the target has; else half of those."""

_ROUNDS = 10
"""Most fits, each with the variance at the mix of the one before."""

_SETTLED = 0.01
"""Change of the mix, in target samples, at which the variance is taken as settled."""

_MOST_CELLS = 2000
"""Cells beyond which the default takes fewer levels of confidence, since the test solves a system of them."""


@final
@dataclass(frozen=True)
class ShiftTest:
    """Whether label shift alone explains how target predictions differ from source predictions.

    Attributes:
        statistic: The distance of the target's cells from the best class mix, in units of its variance; None
            where there is nothing to test.
        degrees_of_freedom: Cells less the classes that the best mix holds; None likewise.
        p_value: Chance of such a distance or a larger one under label shift; None likewise.
        words: What follows, in a sentence or two.
    """

    statistic: float | None
    degrees_of_freedom: int | None
    p_value: float | None
    words: str


def label_shift_test(
    source_logits: ArrayLike,
    source_labels: ArrayLike,
    target_logits: ArrayLike,
    *,
    levels: int | None = None,
) -> ShiftTest:
    r"""Test label shift itself: are the target predictions a mixture of the source's classes?

    $$J = \min_{t \in \Delta} d(t)^\top V(t)^{-1} d(t), \qquad d(t) = h - \sum_y t_y a_y$$

    where $h$ is the histogram of the target predictions over cells (predicted class × level of confidence),
    $a_y$ the one of the source samples of class $y$, and the variance counts the noise of both samples:
    $V(t) = \frac{1}{M} \Sigma(\sum_y t_y a_y) + \sum_y \frac{t_y^2}{N_y} \Sigma(a_y)$ with
    $\Sigma(p) = \operatorname{diag}(p) - p p^\top$. Under label shift $J$ is about chi-square, with as many
    degrees of freedom as there are cells beyond the classes that the best mix holds: conditional on which
    classes it leaves at 0, a cone's projection has that distribution, so absent classes do no harm.

    A small p-value says that *no* prior explains the predictions: the images have changed (covariate shift),
    or a class has come that the source lacks. Estimates of the target prior then mean little. A large one
    says that there is no sign of that in as many samples; a shift that keeps the confidences passes. What a
    model claims is not used: any fixed scores will do, calibrated or not, whatever prior they carry.

    Cells are cut at the source's quantiles of confidence, weighted to a first estimate of the target mix, and
    those expected to hold fewer than 5 samples of either set are merged. A class that the target seems to
    have many of must have at least half as many labelled samples, or 100, or nothing is tested: a handful
    does not show how they vary. Source samples must not have been trained on: their confidence would be too
    high.

    Args:
        source_logits: Scores of held-out labelled source samples, `[N, C]`: an array or a table, whose
            columns name the classes.
        source_labels: Their classes, `[N]`, indices or names.
        target_logits: Scores of the same model on target samples, `[M, C]`.
        levels: Levels of confidence for each predicted class; by default 5, and fewer, but at least 2, with
            more than 400 classes.

    Raises:
        TypeError: If logits are not floating-point, or labels neither whole numbers nor names.
        ValueError: If shapes do not fit, there is no sample, a logit is NaN or $+\infty$, the logits are
            probabilities, or `levels` is below 2.

    Example:
        >>> import numpy as np
        >>> draw = np.random.default_rng(1)
        >>> def scores(labels, quality):
        ...     return quality * np.eye(2)[labels] + draw.normal(size=(len(labels), 2))
        >>> source, target = np.arange(600) % 2, (np.arange(500) % 5 == 0).astype(int)
        >>> held_out = scores(source, 2.0)
        >>> shift = label_shift_test(held_out, source, scores(target, 2.0))
        >>> shift.degrees_of_freedom, round(shift.p_value, 2)
        (8, 0.73)
        >>> label_shift_test(held_out, source, scores(target, 0.5)).p_value < 1e-4
        True

    Reference:
        Hansen, *Large sample properties of generalized method of moments estimators*, Econometrica 1982, for
        the test; Lipton et al., *Detecting and correcting for label shift with black box predictors*, ICML
        2018, for the moments, of which it takes only the predicted classes and so leaves nothing to test.
    """
    source, names = read_scores(source_logits, "source_logits")
    num_classes = source.shape[1]
    target, there = read_scores(target_logits, "target_logits", num_classes=num_classes)
    if names is not None and there is not None and names != there:
        target = target[:, align(there, names, "target_logits")]
    names = names or there
    labels = read_labels(
        source_labels, "source_labels", size=len(source), num_classes=num_classes, names=names
    )
    if levels is not None:
        require_at_least("levels", levels, 2)
    return test_of(source, labels, target, names=names, levels=levels)


def test_of(
    source: Float[np.ndarray, "samples classes"],
    labels: Int[np.ndarray, " samples"],
    target: Float[np.ndarray, "targets classes"],
    *,
    names: Names = None,
    levels: int | None = None,
) -> ShiftTest:
    """The test for samples that were read before."""
    num_classes = source.shape[1]
    levels = levels or max(2, min(5, _MOST_CELLS // num_classes))
    counts = np.bincount(labels, minlength=num_classes)
    if absent := np.flatnonzero(counts == 0).tolist():
        return _untestable(
            f"no labelled source sample shows how {name_classes(absent, names)} would be predicted"
        )

    predicted, confidence = _predict(source)
    target_predicted, target_confidence = _predict(target)
    mix = _fit(
        _conditionals(predicted, labels, num_classes, counts),
        counts,
        np.bincount(target_predicted, minlength=num_classes) / len(target),
        len(target),
    ).mix
    cells = _cut(predicted, confidence, (mix / counts)[labels] * len(target), num_classes, levels)
    too_few = (
        f"{len(source)} source and {len(target)} target samples fill too few cells of at least {_LEAST}, "
        f"{cells.number}, which a mix of {num_classes} classes can fit whatever they hold"
    )
    if cells.number == 1:
        return _untestable(too_few)
    seen = np.bincount(cells.of(target_predicted, target_confidence), minlength=cells.number)
    conditionals = _conditionals(cells.of(predicted, confidence), labels, cells.number, counts)
    fit = _fit(conditionals, counts, seen / len(target), len(target))
    freedom = cells.number - int((fit.mix > 0).sum())
    if freedom < 1:
        return _untestable(too_few)
    wanted = np.minimum(fit.mix * len(target) / 2, _ENOUGH)
    if thin := np.flatnonzero((counts < wanted) & (fit.mix * len(target) >= _LEAST)).tolist():
        return _untestable(
            f"there are too few labelled source samples of {name_classes(thin, names)}, which the target has "
            "many of, to know how they are predicted"
        )
    p_value = float(gammaincc(freedom / 2, fit.distance / 2))
    verdict = f"J = {fit.distance:.1f} on {freedom} degrees of freedom, p = {p_value:.2g}"
    if p_value >= 0.05:
        words = f"Label shift explains the predictions ({verdict})."
    else:
        worst = int(np.abs(fit.residuals).argmax())
        words = (
            f"No class mix explains the predictions ({verdict}): the images have changed or a class is new. "
            f"Furthest off: {cells.describe(worst, names)}, {seen[worst]} samples where the best mix has "
            f"{fit.expected[worst] * len(target):.1f}."
        )
    return ShiftTest(fit.distance, freedom, p_value, words)


def _untestable(reason: str) -> ShiftTest:
    return ShiftTest(None, None, None, f"Label shift cannot be tested: {reason}.")


def _predict(
    scores: Float[np.ndarray, "samples classes"],
) -> tuple[Int[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
    """The predicted class and its log-odds, which tell confidences apart that round to 1."""
    ones = np.ones(scores.shape[1])

    def work(part: slice) -> tuple[Int[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
        rest = scores[part].astype(np.float64)
        rows, predicted = np.arange(len(rest)), rest.argmax(axis=1)
        highest = rest[rows, predicted]
        rest[rows, predicted] = -np.inf
        second = rest.max(axis=1)
        rest -= np.where(np.isfinite(second), second, 0)[:, None]
        np.exp(rest, out=rest)
        with np.errstate(divide="ignore"):
            return predicted, highest - second - np.log(rest @ ones)

    predicted, confidence = zip(*for_blocks(work, *scores.shape), strict=True)
    return np.concatenate(predicted), np.concatenate(confidence)


def _conditionals(
    cells: Int[np.ndarray, " samples"],
    labels: Int[np.ndarray, " samples"],
    number: int,
    counts: Int[np.ndarray, " classes"],
) -> Float[np.ndarray, "cells classes"]:
    """The histogram over cells of the source samples of each class."""
    joint = np.bincount(cells * len(counts) + labels, minlength=number * len(counts))
    return np.asarray(joint.reshape(number, -1) / counts)


@final
@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of predicted class and level of confidence.

    Attributes:
        edges: The highest confidence of each level but the last, `[C, levels - 1]`, infinite after them.
        table: The cell of each class and level, `[C, levels]`.
        number: How many cells there are.
    """

    edges: Float[np.ndarray, "classes edges"]
    table: Int[np.ndarray, "classes levels"]
    number: int

    def of(
        self, predicted: Int[np.ndarray, " samples"], confidence: Float[np.ndarray, " samples"]
    ) -> Int[np.ndarray, " samples"]:
        """The cell of each sample."""
        level = np.zeros(len(predicted), dtype=np.int64)
        for edges in self.edges.T:
            level += confidence > edges[predicted]
        return np.asarray(self.table[predicted, level])

    def describe(self, cell: int, names: Names = None) -> str:
        """A cell in words."""
        classes = np.flatnonzero((self.table == cell).any(axis=1)).tolist()
        first, last = self.table[classes[0]].min(), self.table[classes[0]].max()
        where = f"level {cell - first + 1} of {last - first + 1} in confidence"
        return f"samples predicted as {name_classes(classes, names)}" + (f", {where}" if last > first else "")


def _cut(
    predicted: Int[np.ndarray, " samples"],
    confidence: Float[np.ndarray, " samples"],
    shares: Float[np.ndarray, " samples"],
    num_classes: int,
    levels: int,
) -> _Cells:
    """Cut each predicted class into as many levels as leave each of them enough samples of both sets.

    Args:
        predicted: Classes predicted for the source samples, `[N]`.
        confidence: Their confidence, `[N]`.
        shares: How many target samples each of them stands for, `[N]`.
        num_classes: Number of classes.
        levels: Most levels of a class.
    """
    edges = np.full((num_classes, levels - 1), np.inf)
    table = np.zeros((num_classes, levels), dtype=np.int64)
    expected: list[float] = []
    rest = []
    by_class = np.lexsort((confidence, predicted))
    ends = np.bincount(predicted, minlength=num_classes).cumsum()
    for cls, members in enumerate(np.split(by_class, ends[:-1])):
        ordered, share = confidence[members], shares[members]
        reached = share.cumsum()
        total = float(reached[-1]) if len(members) else 0.0
        for number in range(min(levels, int(total / _LEAST), len(members) // _LEAST), 0, -1):
            cuts = ordered[np.searchsorted(reached, np.arange(1, number) / number * total)]
            level = np.searchsorted(cuts, ordered)
            held = np.bincount(level, weights=share, minlength=number)
            if number == 1 or min(held.min(), np.bincount(level, minlength=number).min()) >= _LEAST:
                edges[cls, : number - 1] = cuts
                table[cls] = len(expected) + np.minimum(np.arange(levels), number - 1)
                expected.extend(held.tolist())
                break
        else:
            rest.append((cls, total))
    if rest:
        classes = [cls for cls, _ in rest]
        enough = sum(total for _, total in rest) >= _LEAST or not expected
        table[classes] = len(expected) if enough else int(np.argmin(expected))
        expected.extend([0.0] * enough)
    return _Cells(edges, table, len(expected))


@final
@dataclass(frozen=True, eq=False)
class _Fit:
    """The class mix whose histogram is nearest to the target's.

    Attributes:
        mix: The mix, `[C]`; exactly 0 for a class that it leaves out.
        distance: The statistic.
        expected: The mix's histogram, `[B]`.
        residuals: How far the target's is off in each cell, in standard deviations, `[B]`.
    """

    mix: Float[np.ndarray, " classes"]
    distance: float
    expected: Float[np.ndarray, " cells"]
    residuals: Float[np.ndarray, " cells"]


def _fit(
    conditionals: Float[np.ndarray, "cells classes"],
    counts: Int[np.ndarray, " classes"],
    observed: Float[np.ndarray, " cells"],
    size: int,
) -> _Fit:
    mix = np.full(len(counts), 1 / len(counts))
    for _ in range(_ROUNDS):
        # A cell that no source sample of these classes fell into is given half a target sample.
        expected = np.maximum(conditionals @ mix, 0.5 / size)
        expected /= expected.sum()
        scaled = conditionals * (mix / np.sqrt(counts))
        variance = -(scaled @ scaled.T)
        variance -= np.outer(expected / size, expected)
        np.einsum("ii->i", variance)[:] += expected / size + conditionals @ (mix**2 / counts)
        deviations = np.sqrt(variance.diagonal())
        # Histograms sum to 1, so the last cell adds nothing.
        factor = cholesky(variance[:-1, :-1], lower=True, overwrite_a=True, check_finite=False)
        gaps = solve_triangular(
            factor, (observed[:, None] - conditionals)[:-1], lower=True, overwrite_b=True, check_finite=False
        )
        form = gaps.T @ gaps
        # Of mixes that are equally good, the one nearest to uniform.
        damping = 1e-10 * form.diagonal().mean() + 1e-12
        previous, mix = mix, nearest_mix(form + damping * np.eye(len(mix)))
        if np.abs(mix - previous).max() < _SETTLED / size:
            break
    return _Fit(mix, float(mix @ form @ mix), expected, (observed - conditionals @ mix) / deviations)
