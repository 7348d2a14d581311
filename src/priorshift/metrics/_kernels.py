"""Per-sample numbers behind the metrics, in one pass over blocks of rows; arguments are trusted."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int, Num

from priorshift._blocks import for_blocks
from priorshift.metrics._samples import TOLERANCE, Rows, Samples

BLOCK = 2**16
"""Entries that are worked on at a time: few enough to stay in a cache."""
_TINY = 1e-140
"""Sum of exponentials below which underflow, of them or of their squares, may matter."""

_MANY = 16
"""Weightings from which a matrix product is faster than a sum for each."""

Result = TypeVar("Result")
Kept: TypeAlias = Int[np.ndarray, " kept"] | None
Block = Num[np.ndarray, "block classes"]


class Cells(NamedTuple):
    """The classwise residuals of a block: sums over classes, and what is above the first bin."""

    totals: Float[np.ndarray, "weightings classes"]
    """Weighted sum of $1[y_i = j] - p_{ij}$ over the samples of the block, without the first part."""
    dense: Float[np.ndarray, "weightings cells"] | None
    """Weighted sum of the same over the samples of each bin above the first; None if it is sparse."""
    rows: Int[np.ndarray, " above"]
    cells: Int[np.ndarray, " above"]
    residuals: Float[np.ndarray, " above"]


class Outcome(NamedTuple):
    """Numbers of each sample under one prior."""

    predicted: Int[np.ndarray, " kept"]
    confidence: Float[np.ndarray, " kept"]
    squares: Float[np.ndarray, " kept"]
    """Squared errors of the probabilities, summed over classes."""
    nll: Float[np.ndarray, " kept"]
    undefined: Bool[np.ndarray, " kept"]
    """Samples whose scores give no probabilities; their numbers are 0."""
    excess: Float[np.ndarray, "weightings classes bins"]
    r"""$\sum_i w_i (1[y_i = j] - p_{ij})$ over the samples of each bin, for each weighting."""


class Scratch(threading.local):
    """Arrays that each thread uses again for every block: new memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        size = int(np.prod(shape))
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, dtype)
        found: npt.NDArray[Any] = held[:size].reshape(shape)
        return found

    def double(self, block: Block) -> Float[np.ndarray, "block classes"]:
        """The block as contiguous float64; not to be written into."""
        if block.dtype == np.float64 and block.flags.c_contiguous:
            return block
        copy: Block = self.array("double", block.shape)
        copy[...] = block
        return copy


def edges_of(num_bins: int) -> Float[np.ndarray, " edges"]:
    """Edges of equal bins of [0, 1]."""
    # Division, since multiples of 1 / num_bins are not the float64 numbers nearest to m / num_bins.
    return np.arange(num_bins + 1) / num_bins


def bins_of(
    values: Float[np.ndarray, " values"], edges: Float[np.ndarray, " edges"]
) -> Int[np.ndarray, " values"]:
    """The bin of each number in [0, 1]: `(edges[m], edges[m+1]]`, the first closed at 0."""
    last = len(edges) - 2
    bins: Int[np.ndarray, " values"] = np.ceil(values * (last + 1)).astype(np.int64) - 1
    np.clip(bins, 0, last, out=bins)
    # The product is rounded: put right what it moved past an edge.
    bins -= (values <= edges[bins]) & (bins > 0)
    bins += (values > edges[bins + 1]) & (bins < last)
    return bins


def mean_of_classes(rows: Rows, samples: Samples) -> tuple[Float[np.ndarray, " classes"], bool]:
    """Weighted sum of each class's probability; and whether all rows are distributions."""
    scratch = Scratch()

    def work(part: slice, block: Block) -> tuple[Float[np.ndarray, " classes"], bool]:
        block, sound = _checked(block)
        return _weighted_sum(samples.weights[None, part], scratch.double(block))[0], sound

    parts = _each(rows, samples.kept, work)
    return sum((total for total, _ in parts), np.zeros(rows.shape[1])), all(sound for _, sound in parts)


def squared_errors(
    rows: Rows, classes: Int[np.ndarray, " kept"], samples: Samples
) -> tuple[Float[np.ndarray, " kept"], bool]:
    """Squared errors of the probabilities of each sample; and whether all rows are distributions."""
    found, scratch = np.empty(len(classes)), Scratch()

    def work(part: slice, block: Block) -> bool:
        block, sound = _checked(block)
        block = scratch.double(block)
        found[part] = _squares(block, block[np.arange(len(block)), classes[part]])
        return sound

    return found, all(_each(rows, samples.kept, work))


def true_nll(
    rows: Rows, classes: Int[np.ndarray, " kept"], samples: Samples
) -> tuple[Float[np.ndarray, " kept"], bool]:
    """Negative log-probabilities of the true classes; and whether all rows are distributions."""
    found, scratch = np.empty(len(classes)), Scratch()

    def work(part: slice, block: Block) -> bool:
        truth = block[np.arange(len(block)), classes[part]].astype(np.float64)
        found[part] = 0.0 - np.minimum(truth, 0)
        # Single precision tells a sum that is off by 1e-4, and its exponential is much faster.
        single = scratch.array("single", block.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            single[...] = block
            return _near_one(row_sums(np.exp(single, out=single)))

    return found, all(_each(rows, samples.kept, work))


def confidences(
    rows: Rows, samples: Samples
) -> tuple[Float[np.ndarray, " kept"], Int[np.ndarray, " kept"], bool]:
    """The largest probability of each sample, its class, and whether all rows are distributions."""
    size = len(samples.weights)
    confidence, predicted = np.empty(size), np.empty(size, dtype=np.int64)

    def work(part: slice, block: Block) -> bool:
        block, sound = _checked(block)
        best = block.argmax(axis=1)
        predicted[part], confidence[part] = best, block[np.arange(len(block)), best]
        return sound

    sound = all(_each(rows, samples.kept, work))
    return confidence, predicted, sound


def class_excess(
    rows: Rows, classes: Int[np.ndarray, " kept"], samples: Samples, num_bins: int
) -> tuple[Float[np.ndarray, "classes bins"], bool]:
    """Weighted residuals of each class's probability by bin; and whether all rows are distributions."""
    edges, scratch, weights = edges_of(num_bins), Scratch(), samples.weights[None]

    def work(part: slice, block: Block) -> tuple[Cells, bool]:
        block, sound = _checked(block)
        block = scratch.double(block)
        ones = np.ones(len(block))
        if not sound:
            block = np.zeros_like(block)
        return _cells(block, ones, classes[part], weights[:, part], part.start, edges), sound

    parts = _each(rows, samples.kept, work)
    found = _gather([cells for cells, _ in parts], classes, weights, rows.shape[1], num_bins)[0]
    return found, all(sound for _, sound in parts)


def outcomes(
    logits: Float[np.ndarray, "samples classes"],
    classes: Int[np.ndarray, " kept"],
    kept: Kept,
    moves: Sequence[Float[np.ndarray, " classes"] | None],
    weights: Sequence[Float[np.ndarray, "weightings kept"]],
    *,
    num_bins: int,
) -> list[Outcome]:
    r"""What every score needs of logits, read once, under each of several priors.

    Exponentials are taken once: $e^{f_y + d_y - \max} = e^{f_y - \max} e^{d_y}$ under a prior whose logarithm
    differs by $d$ from that of the carried one.

    Args:
        logits: All of them.
        classes: True classes of the samples that are kept.
        kept: Their positions; None for all.
        moves: For each prior the change of its logarithm, $d$; None leaves the logits as they are.
        weights: For each prior one or more weightings of the samples that are kept.
        num_bins: Number of bins of classwise calibration.
    """
    num_classes, size = logits.shape[1], len(classes)
    edges, scratch = edges_of(num_bins), Scratch()
    alone = moves[0] if len(moves) == 1 else None
    found = [_empty_outcome(size) for _ in moves]

    def work(part: slice, block: Block) -> list[Cells]:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if alone is not None:
                # In the precision of the logits, as `adjust` does it.
                block = _moved(block, alone, scratch.array("moved", block.shape, block.dtype))
            here, truth = np.arange(len(block)), classes[part]
            best = block.argmax(axis=1)
            tops = block[here, best].astype(np.float64)
            scaled = scratch.array("scaled", block.shape)
            scaled[...] = block
            gaps = scaled[here, truth] - tops
            scaled -= tops[:, None]
            np.exp(scaled, out=scaled)
            cells = []
            for move, outcome, masses in zip(moves, found, weights, strict=True):
                if alone is not None or move is None:
                    x, sums, nll, predicted = scaled, row_sums(scaled), -gaps, best
                else:
                    x, sums, nll = _under(move, scaled, gaps, truth, block, tops, scratch)
                    predicted = x.argmax(axis=1)
                nll = np.maximum(nll + np.log(sums), 0)
                wrong = ~(sums > 0)
                if wrong.any():
                    x = np.where(wrong[:, None], 0, x)
                    sums, nll = np.where(wrong, 1, sums), np.where(wrong, 0, nll)
                outcome.predicted[part], outcome.nll[part] = predicted, nll
                outcome.undefined[part] = wrong
                outcome.confidence[part] = x[here, predicted] / sums
                outcome.squares[part] = _squares(x, x[here, truth], sums)
                cells.append(_cells(x, sums, truth, masses[:, part], part.start, edges))
        return cells

    parts = _each(logits, kept, work)
    return [
        outcome._replace(
            excess=_gather([part[index] for part in parts], classes, weights[index], num_classes, num_bins)
        )
        for index, outcome in enumerate(found)
    ]


def _empty_outcome(size: int) -> Outcome:
    confidence, squares, nll = np.empty((3, size))
    predicted, undefined = np.empty(size, dtype=np.int64), np.empty(size, dtype=bool)
    return Outcome(predicted, confidence, squares, nll, undefined, np.empty((0, 0, 0)))


def _moved(block: Block, move: Float[np.ndarray, " classes"], out: Block) -> Block:
    absent = move == -np.inf
    np.add(block, np.where(absent, 0, move).astype(block.dtype), out=out)
    if absent.any():
        out[:, absent] = -np.inf
    return out


def _under(
    move: Float[np.ndarray, " classes"],
    scaled: Float[np.ndarray, "block classes"],
    gaps: Float[np.ndarray, " block"],
    truth: Int[np.ndarray, " block"],
    block: Block,
    tops: Float[np.ndarray, " block"],
    scratch: Scratch,
) -> tuple[Float[np.ndarray, "block classes"], Float[np.ndarray, " block"], Float[np.ndarray, " block"]]:
    """Masses under another prior, their sums, and the NLL less the logarithm of the sum."""
    largest = move.max()
    ratios = np.exp(move - largest)
    x = np.multiply(scaled, ratios, out=scratch.array("under", scaled.shape))
    sums = row_sums(x)
    shifts = np.full(len(x), largest)
    weak = np.flatnonzero(sums < _TINY)
    if len(weak):  # The likely classes have next to no mass: exponentials of their own.
        exact = block[weak].astype(np.float64) - tops[weak, None] + move
        exact[:, move == -np.inf] = -np.inf
        shifts[weak] = exact.max(axis=1)
        x[weak] = np.exp(exact - shifts[weak, None])
        sums[weak] = x[weak].sum(axis=1)
    return x, sums, shifts - gaps - move[truth]


def _squares(
    x: Float[np.ndarray, "block classes"],
    of_truth: Float[np.ndarray, " block"],
    sums: Float[np.ndarray, " block"] | float = 1.0,
) -> Float[np.ndarray, " block"]:
    others = np.einsum("ij,ij->i", x, x) - of_truth**2
    squares: Float[np.ndarray, " block"] = np.maximum(others, 0) / (sums * sums) + (1 - of_truth / sums) ** 2
    return squares


def _cells(
    x: Float[np.ndarray, "block classes"],
    sums: Float[np.ndarray, " block"],
    truth: Int[np.ndarray, " block"],
    weights: Float[np.ndarray, "weightings block"],
    start: int,
    edges: Float[np.ndarray, " edges"],
) -> Cells:
    num_classes, num_bins = x.shape[1], len(edges) - 1
    totals = _weighted_sum(weights / sums, x)
    # Nearly all probabilities are in the first bin, whose sum is what the others leave of the whole.
    places = np.flatnonzero(x > (sums * edges[1])[:, None])
    rows = places // num_classes
    columns = places - rows * num_classes
    values = x.reshape(-1)[places] / sums[rows]
    cells = columns * num_bins + bins_of(values, edges)
    residuals = (truth[rows] == columns) - values
    if 3 * len(places) <= len(weights) * num_classes * num_bins:
        return Cells(totals, None, rows + start, cells, residuals)
    dense = [np.bincount(cells, masses[rows] * residuals, num_classes * num_bins) for masses in weights]
    return Cells(totals, np.stack(dense), rows[:0], cells[:0], residuals[:0])


def _gather(
    parts: Sequence[Cells],
    classes: Int[np.ndarray, " kept"],
    weights: Float[np.ndarray, "weightings kept"],
    num_classes: int,
    num_bins: int,
) -> Float[np.ndarray, "weightings classes bins"]:
    rows, cells, residuals = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "cells", "residuals")
    )
    excess = np.empty((len(weights), num_classes, num_bins))
    for index, masses in enumerate(weights):
        total = np.bincount(classes, masses, num_classes)
        above = np.bincount(cells, masses[rows] * residuals, num_classes * num_bins).astype(np.float64)
        for part in parts:
            total -= part.totals[index]
            if part.dense is not None:
                above += part.dense[index]
        excess[index] = above.reshape(num_classes, num_bins)
        excess[index, :, 0] = total - excess[index, :, 1:].sum(axis=1)
    return excess


def _checked(block: Block) -> tuple[Block, bool]:
    """A block of probabilities, clipped to [0, 1] against rounding, and whether they are distributions."""
    with np.errstate(over="ignore", invalid="ignore"):
        lowest, highest = block.min(), block.max()
        sound = bool(lowest >= -TOLERANCE) and _near_one(row_sums(block))
    if sound and (lowest < 0 or highest > 1):
        block = np.clip(block, 0, 1)
    return block, sound


def row_sums(block: Block) -> Float[np.ndarray, " block"]:
    # Not a product with ones: BLAS has threads of its own, which get into the way of those of `for_blocks`.
    sums: Float[np.ndarray, " block"] = np.einsum("ij->i", block)
    return sums


def _weighted_sum(
    weights: Float[np.ndarray, "weightings block"], block: Float[np.ndarray, "block classes"]
) -> Float[np.ndarray, "weightings classes"]:
    if len(weights) > _MANY:
        sums: Float[np.ndarray, "weightings classes"] = weights @ block
        return sums
    return np.stack([np.einsum("i,ij->j", masses, block) for masses in weights])


def _near_one(sums: Float[np.ndarray, " block"]) -> bool:
    return bool(np.abs(sums - 1).max() <= TOLERANCE)


def _each(
    rows: Num[np.ndarray, "samples classes"], kept: Kept, work: Callable[[slice, Block], Result]
) -> list[Result]:
    """What `work` returns for each block of the rows that are kept."""
    size = len(rows) if kept is None else len(kept)

    def on(part: slice) -> Result:
        return work(part, rows[part] if kept is None else rows[kept[part]])

    return for_blocks(on, size, rows.shape[1], entries=BLOCK)
