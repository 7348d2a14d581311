"""A bounded summary of a stream: the mean posterior of all samples, and a weighted random sample of them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped, UInt64
from scipy.linalg import cho_solve, cholesky

from priorshift._blocks import for_blocks, row_blocks
from priorshift.streams._scorer import Scorer, softmax, sum_of_posteriors

_CLOSE = 1e-12
"""How far the mean posterior of the reweighted sample may be from that of all samples."""
_PRODUCT = 2**22
"""Entries of a matrix product."""
_FEWEST = 1000
"""Samples that come before a window is moved on."""


class Summary:
    """What a stream keeps of its samples, at most `capacity` rows of them or those of the last `window`.

    Each row has three marks: the key that decides which rows are kept, the smaller the longer; the time of
    the sample; its position in its stream.
    """

    def __init__(
        self, scorer: Scorer, *, half_life: float | None, window: float | None, capacity: int
    ) -> None:
        self._scorer, self.window, self.capacity = scorer, window, capacity
        num_classes = scorer.num_classes
        self._rate = 0.0 if half_life is None else math.log(2) / half_life
        self.now = -math.inf
        # Of all samples: the sums of weights, of their squares, and of the weighted posteriors.
        self.mass, self.squares = 0.0, 0.0
        self.posterior = np.zeros(num_classes)
        # The smallest key of those that were not kept.
        self.threshold = math.inf
        self._rows, self._marks = np.empty((0, num_classes), np.float32), np.empty((0, 3))
        self._size = self._pending = 0

    @property
    def rows(self) -> Float[np.ndarray, "kept classes"]:
        """Logarithms of likelihood ratios, less the largest of each row, float32."""
        return self._rows[: self._size]

    @property
    def marks(self) -> Float64[np.ndarray, "kept 3"]:
        """Key, time and position of each row."""
        return self._marks[: self._size]

    @property
    def worth(self) -> float:
        """The number of equally weighted samples with the same variance."""
        return float(self._size) if self.window is not None else self.mass**2 / self.squares

    def add(
        self,
        calibrated: Float[np.ndarray, "samples classes"],
        places: Float64[np.ndarray, " samples"],
        times: Float64[np.ndarray, " samples"],
        draws: Float64[np.ndarray, " samples"],
    ) -> None:
        """Count samples in: scores, positions, times, and exponential numbers that decide which are kept."""
        keys = np.log(draws) - self._growth(times)
        self._advance(float(times.max()))
        weights = None
        if self._rate:
            weights = np.exp(self._growth(times) - self._growth(self.now))
            self.mass, self.squares = self.mass + weights.sum(), self.squares + float(weights @ weights)
        else:
            self.mass, self.squares = self.mass + len(times), self.squares + len(times)
        self.posterior = self.posterior + sum_of_posteriors(calibrated, weights)
        wanted = keys < self.threshold
        if not wanted.all():
            calibrated, keys, times, places = (part[wanted] for part in (calibrated, keys, times, places))
        rows, marks = self._room(len(calibrated))
        self._scorer.log_ratios(calibrated, rows)
        marks[:, 0], marks[:, 1], marks[:, 2] = keys, times, places
        if self._pending >= (
            self.capacity if self.window is None else max(_FEWEST, self._size - self._pending)
        ):
            self.compact()

    def absorb(self, others: Sequence["Summary"]) -> None:
        """Count in the samples of summaries of other streams."""
        rows, marks = self._room(sum(other._size for other in others))
        first = 0
        for other in others:
            if other.mass:
                self._advance(other.now)
                decay = math.exp(other._growth(other.now) - self._growth(self.now))
                self.mass += decay * other.mass
                self.squares += decay**2 * other.squares
                self.posterior = self.posterior + decay * other.posterior
            last = first + other._size
            rows[first:last], marks[first:last] = other.rows, other.marks
            first = last
            self.threshold = min(self.threshold, other.threshold)
        self.compact()

    def compact(self) -> None:
        """Forget the rows outside the window, or all but `capacity`, and sort the others by their keys."""
        if not self._pending:
            return
        keys, times = self.marks[:, 0], self.marks[:, 1]
        order = keys.argsort(kind="stable")
        if self.window is not None:
            order = order[times[order] > self.now - self.window]
        elif len(order) > self.capacity:
            self.threshold = min(self.threshold, float(keys[order[self.capacity]]))
            order = order[: self.capacity]
        order = order[: np.searchsorted(keys[order], self.threshold)]
        self._rows, self._marks = self.rows[order], self.marks[order]
        self._size, self._pending = len(order), 0

    def restart(self, keep: Bool[np.ndarray, " kept"]) -> None:
        """Continue as if only these of the rows had ever come."""
        self._rows, self._marks = self.rows[keep], self.marks[keep]
        self._size = len(self._rows)
        # The rows that are kept are all there is now: the same prior as that of the dropped ones, only fewer.
        self.threshold = math.inf
        weights = self.weights()
        self.mass, self.squares = float(weights.sum()), float(weights @ weights)
        self.posterior = weights @ self._posteriors()

    def weights(self) -> Float64[np.ndarray, " kept"]:
        """Weights of the rows: their own, or where others were dropped, for those as well."""
        own = np.exp(self._growth(self.marks[:, 1]) - self._growth(self.now))
        if self.threshold == math.inf or not self._size:
            return np.asarray(own)
        # The chance to be kept, given the others: that an exponential time comes before the threshold.
        reach = math.exp(self.threshold + self._growth(self.now))
        weights = own / -np.expm1(-own * reach)
        return reweighted(weights, self._posteriors(), self.posterior / self.mass)

    def state(self) -> tuple[list[str], dict[str, Any]]:
        """Everything in it, as numbers in hexadecimal and arrays."""
        self.compact()
        numbers = [float(number).hex() for number in (self.now, self.mass, self.squares, self.threshold)]
        return numbers, {"rows": self.rows, "marks": self.marks, "posterior": self.posterior}

    def load(self, numbers: Sequence[str], arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Read what `state` gave.

        Raises:
            KeyError, TypeError, ValueError: If the parts do not fit.
        """
        rows, marks, posterior = arrays["rows"], arrays["marks"], arrays["posterior"]
        if rows.shape != (len(marks), len(self.posterior)) or marks.shape != (len(rows), 3):
            raise ValueError(f"expected a mark for each row, but got {marks.shape}")
        if posterior.shape != self.posterior.shape:
            raise ValueError(f"expected one posterior per class, but got {posterior.shape}")
        self._rows, self._marks, self.posterior = rows.astype(np.float32, copy=False), marks, posterior
        self._size = len(rows)
        self.now, self.mass, self.squares, self.threshold = map(float.fromhex, numbers)

    def _room(
        self, size: int
    ) -> tuple[Float[np.ndarray, "samples classes"], Float64[np.ndarray, "samples 3"]]:
        """Where to write as many more rows and marks."""
        first, last = self._size, self._size + size
        if last > len(self._rows):
            for name in ("_rows", "_marks"):
                held = getattr(self, name)
                wider = np.empty((max(last, 2 * first), held.shape[1]), held.dtype)
                wider[:first] = held[:first]
                setattr(self, name, wider)
        self._size, self._pending = last, self._pending + size
        return self._rows[first:last], self._marks[first:last]

    def _posteriors(self) -> Float64[np.ndarray, "kept classes"]:
        found = np.empty((self._size, self._scorer.num_classes))

        def work(part: slice) -> None:
            np.add(self.rows[part], self._scorer.carried.log_probs, out=found[part])
            softmax(found[part])

        for_blocks(work, self._size, self._scorer.num_classes)
        return found

    def _growth(self, time: Any) -> Any:
        """The logarithm of a weight, up to a constant: later samples weigh more, earlier ones stay."""
        return time * self._rate

    def _advance(self, now: float) -> None:
        if now > self.now:
            if self.mass:
                decay = math.exp(self._growth(self.now) - self._growth(now))
                self.mass, self.squares = decay * self.mass, decay**2 * self.squares
                self.posterior = decay * self.posterior
            self.now = now


def exponentials(
    stream: str, positions: UInt64[np.ndarray, " positions"]
) -> Float64[np.ndarray, " positions"]:
    """A number for each position of a stream, as if drawn from the exponential distribution of mean 1."""
    mixed = positions * np.uint64(0x9E3779B97F4A7C15) + _seed(stream)
    # The finalizer of SplitMix64 (Steele et al., 2014), which leaves no pattern of the positions.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return -np.log(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


@lru_cache(maxsize=256)
def _seed(stream: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little"))


def reweighted(
    weights: Float64[np.ndarray, " kept"],
    posterior: Float64[np.ndarray, "kept classes"],
    mean: Float64[np.ndarray, " classes"],
) -> Float64[np.ndarray, " kept"]:
    r"""Weights of sum 1, nearest to the given ones in divergence, whose mean posterior is `mean`.

    They are $w_i e^{\lambda \cdot p_i}$. Where there are none, which happens with tiny samples, the given
    weights stay. `posterior` is overwritten.
    """
    start = weights / weights.sum()
    centered = posterior
    centered -= mean
    gap = start @ centered
    spread = -np.outer(gap, gap)
    roots = np.sqrt(start)
    for part in row_blocks(*centered.shape, entries=_PRODUCT):
        block = centered[part] * roots[part, None]
        spread += block.T @ block
    diagonal = np.einsum("ii->i", spread)
    diagonal += 1e-9 * diagonal.mean() + 1e-300
    factor = cholesky(spread, lower=True, overwrite_a=True, check_finite=False)
    tilt = np.zeros_like(mean)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(50):
            tilted = start * np.exp(centered @ tilt)
            tilted /= tilted.sum()
            gap = tilted @ centered
            if not np.isfinite(gap).all():
                return np.asarray(start)
            if np.abs(gap).max() <= _CLOSE:
                return np.asarray(tilted)
            tilt -= cho_solve((factor, True), gap, check_finite=False)
    return np.asarray(tilted if np.abs(gap).max() <= 1e-6 else start)
