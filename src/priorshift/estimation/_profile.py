"""The search for the ends of likelihood intervals, for all classes together."""

import math
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit, ndtri

from priorshift._blocks import row_blocks
from priorshift.estimation._likelihood import Likelihood

CLOSE = 0.01
"""Nats by which the log-likelihood at an end may miss its threshold."""
_ROUNDS = 20
"""Rounds in which ends are searched for together; those that take longer are searched for one by one."""
_BLOCK = 2**20
"""Entries of a matrix product."""
_FACTORS = 8
"""Densities that are multiplied before a logarithm is taken."""
_TINY = float(np.finfo(np.float64).tiny)


@final
class Profile:
    """The search for the ends of likelihood intervals.

    Args:
        likelihood: The likelihood, of equal weights; its ratios are used as they are.
        probs: The prior of highest likelihood.
        level: How often an interval should hold the truth.

    Attributes:
        shortfall: Nats by which the likelihood at `probs` is below its maximum, at most.
        errors: Standard errors of the shares, `[C]`.
    """

    def __init__(self, likelihood: Likelihood, probs: Float[np.ndarray, " classes"], level: float) -> None:
        size = likelihood.num_samples
        self._ratios, self._size, self._probs = likelihood.ratios, size, probs
        self._inside = likelihood.half_a_sample_inside(probs)
        information = likelihood.information(self._inside)
        value, gradient = likelihood.evaluate(probs)
        self._highest = size * value
        self.shortfall = size * math.log(max(gradient.max(), 1e-300))
        # Classes with less than half a sample stay where they are while the curvature moves the others.
        self._free = (size * probs > 0.5) | (probs == probs.max())
        self._inverse, offset = _bordered_inverse(information, self._free)
        # Column y: how the free classes make room for class y.
        own = self._inverse.diagonal()
        moves = self._free & (own > 0)
        self._room = np.where(
            moves,
            self._inverse / np.where(own > 0, own, 1.0),
            -(self._inverse @ information) - offset[:, None],
        )
        np.fill_diagonal(self._room, 1.0)
        own = np.einsum("ij,ij->j", self._room, information @ self._room)
        self.errors = 1 / np.sqrt(size * np.maximum(own, 1e-12))
        self._half = float(ndtri((1 + level) / 2)) ** 2 / 2
        with np.errstate(over="ignore", under="ignore"):
            unseen = np.exp(-np.square(probs / self.errors))
        self._upper = self._half + max(0.0, -math.log(1 - level) - self._half) * unseen

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")
    def ends(self, classes: Int[np.ndarray, " ends"], *, upwards: bool) -> Float[np.ndarray, " ends"]:
        """The upper or lower ends of some classes."""
        inside, free, size = self._inside[:, None], self._free[:, None], self._size
        asked, best, room = classes, self._probs[classes], self._room[:, classes]
        threshold = self._upper[classes] if upwards else np.full(len(classes), self._half)
        value = self._first_guess(classes, threshold, upwards=upwards)
        moved = np.where(free, np.clip((value - best) * room / inside, -1, 1), 0.0)
        mix = _with_share(np.maximum(self._probs, 0.02 / size)[:, None] * np.exp(moved), classes, value)
        found, left = value.copy(), np.arange(len(classes))
        for step in range(_ROUNDS):
            column = np.arange(len(left))
            logs, gradient = self._profiled(mix)
            drop = self._highest - logs
            own = gradient[classes, column]
            rest = (1 - value * own) / (1 - value)
            relative = gradient / rest
            uphill = np.where(free, np.log(np.maximum(relative, 1e-9)), 0.0)
            uphill = np.where(uphill < 0, uphill * np.minimum(mix / inside, 1), uphill)
            uphill[classes, column] = 0
            newton = self._inverse @ uphill
            newton = np.where(self._free[classes], newton - room * newton[classes, column], newton)
            missing = size / 2 * np.einsum("ij,ij->j", uphill, newton)
            absent = (value < 1e-3 * self._inside[classes]) & (drop < threshold) & (not upwards)
            there = (np.abs(drop - threshold) < CLOSE) | absent
            # A class outside the curvature may still be growing where its gradient is larger than the rest's.
            grows = (mix * np.maximum(relative - 1, 0) * ~free).sum(axis=0) * size
            late = ~(there & (np.abs(missing) < CLOSE) & (grows < CLOSE))
            found[left] = value
            signed = np.sqrt(2 * np.maximum(drop, 1e-9))
            rate = np.maximum(size * np.abs(own - rest) / signed, 1e-300)
            distance = np.abs(value - best)
            change = np.clip((np.sqrt(2 * threshold) - signed) / rate, -0.6 * distance, 1.5 * distance)
            change = np.where(there, 0.0, change if upwards else -change)
            following = np.maximum(value + change, 0.1 * value)
            following = np.where(following >= 1, (1 + value) / 2, following)
            damped = newton if step < _ROUNDS // 2 else newton / 2
            moved = np.exp(np.clip((damped + (following - value) * room) / inside, -1, 1))
            mix = mix * np.where(free, moved, np.clip(relative, 0.05, 20))
            left, classes, best, threshold, value = (
                each[late] for each in (left, classes, best, threshold, following)
            )
            mix, room = _with_share(mix[:, late], classes, value), room[:, late]
            if not len(left):
                break
        for place, cls, height in zip(left.tolist(), classes.tolist(), threshold.tolist(), strict=True):
            found[place] = self._search(cls, float(found[place]), height, upwards=upwards)
        return found if upwards else np.where(found >= 2e-3 * self._inside[asked], found, 0.0)

    def _first_guess(
        self, classes: Int[np.ndarray, " ends"], threshold: Float[np.ndarray, " ends"], *, upwards: bool
    ) -> Float[np.ndarray, " ends"]:
        """Ends of normal intervals, on the scale of log-odds or of shares, whichever are nearer."""
        best, inside = self._probs[classes], self._inside[classes]
        reach = np.sqrt(2 * threshold) * self.errors[classes]
        slope = np.minimum(reach / (inside * (1 - inside)), 5)
        if not upwards:
            return np.asarray(np.minimum(expit(logit(inside) - slope), 0.999 * best))
        value = np.minimum(expit(logit(inside) + slope), best + 1.5 * reach)
        value = np.maximum(np.minimum(value, 1 - 1e-9), np.minimum(best + 1e-3 * reach, 1 - 1e-9))
        return np.asarray(value)

    def _profiled(
        self, mix: Float[np.ndarray, "classes ends"]
    ) -> tuple[Float[np.ndarray, " ends"], Float[np.ndarray, "classes ends"]]:
        """Sums of log-densities under some mixes, a column each, and the gradients of their means."""
        columns = np.ascontiguousarray(mix, dtype=self._ratios.dtype)
        logs, gradient = np.zeros(mix.shape[1]), np.zeros(mix.shape)
        for part in row_blocks(self._size, max(mix.shape), entries=_BLOCK):
            block = self._ratios[part]
            density = block @ columns
            logs += _sum_of_logs(density)
            gradient += block.T @ np.reciprocal(density, out=density)
        gradient /= self._size
        # What rounding the mixes to the precision of the ratios took from the likelihood.
        return logs + self._size * np.einsum("ij,ij->j", gradient, mix - columns), gradient

    def _search(self, cls: int, value: float, threshold: float, *, upwards: bool) -> float:
        """One end by the Illinois variant of regula falsi on the square root of the drop."""
        if not upwards and self._drop(cls, 0.0) <= threshold:
            return 0.0
        near, far = float(self._probs[cls]), 1.0 if upwards else 0.0
        target = math.sqrt(threshold)
        near_gap, far_gap, last = -target, 0.0, 0
        for _ in range(50):
            drop = self._drop(cls, value)
            if abs(drop - threshold) < 2 * CLOSE or abs(far - near) < 1e-9:
                break
            gap = math.sqrt(max(drop, 0.0)) - target
            if gap < 0:
                far_gap /= 2 if last < 0 else 1
                near, near_gap, last = value, gap, -1
            else:
                near_gap /= 2 if last > 0 else 1
                far, far_gap, last = value, gap, 1
            if far_gap > 0:
                value = (near * far_gap - far * near_gap) / (far_gap - near_gap)
            else:
                value = min(3 * near, (near + 1) / 2) if upwards else near / 3
        return value

    def _drop(self, cls: int, value: float) -> float:
        """Nats by which the best prior with one class's share fixed is less likely than the best of all.

        With that share fixed the others are again the weights of a mixture, of the components
        $v r_y + (1 - v) r_z$.
        """
        others = np.arange(self._ratios.shape[1]) != cls
        components = (1 - value) * self._ratios[:, others].astype(np.float64)
        components += value * self._ratios[:, cls, None]
        if (components == 0).all(axis=1).any():
            return math.inf
        if components.shape[1] == 1:
            return float(self._highest - np.log(components).sum())
        tops = components.max(axis=1)
        components /= tops[:, None]
        start = self._inside[others]
        solution = Likelihood.from_ratios(components).maximize(start=start, tolerance=CLOSE / 5 / self._size)
        return float(self._highest - self._size * solution.log_likelihood - np.log(tops).sum())


def _bordered_inverse(
    information: Float[np.ndarray, "classes classes"], free: Bool[np.ndarray, " classes"]
) -> tuple[Float[np.ndarray, "classes classes"], Float[np.ndarray, " classes"]]:
    """The inverse information of the free classes whose shares keep their sum, and what moves that sum."""
    held, num_classes = np.flatnonzero(free), len(free)
    bordered = np.ones((len(held) + 1, len(held) + 1))
    bordered[:-1, :-1] = information[np.ix_(held, held)]
    np.einsum("ii->i", bordered)[:-1] *= 1 + 1e-10
    bordered[-1, -1] = 0
    found = np.linalg.inv(bordered)
    inverse, offset = np.zeros((num_classes, num_classes)), np.zeros(num_classes)
    inverse[np.ix_(held, held)] = found[:-1, :-1]
    offset[held] = found[:-1, -1]
    return inverse, offset


def _sum_of_logs(density: Float[np.ndarray, "samples ends"]) -> Float[np.ndarray, " ends"]:
    """Sums over samples of log-densities, by logarithms of products of a few, which are quicker."""
    many = len(density) // _FACTORS * _FACTORS
    factors = density[:many].reshape(-1, _FACTORS, density.shape[1])
    products = np.multiply.reduce(factors, axis=1, dtype=np.float64)
    sums = np.log(density[many:]).sum(axis=0, dtype=np.float64)
    if not (products > _TINY).all():  # an underflow, perhaps
        return np.asarray(sums + np.log(density[:many]).sum(axis=0, dtype=np.float64))
    return np.asarray(sums + np.log(products, out=products).sum(axis=0))


def _with_share(
    mixes: Float[np.ndarray, "classes ends"],
    classes: Int[np.ndarray, " ends"],
    shares: Float[np.ndarray, " ends"],
) -> Float[np.ndarray, "classes ends"]:
    """Mixes, a column each, in which one class has a given share and the others keep their proportions."""
    column = np.arange(len(classes))
    mixes = np.maximum(mixes, 1e-15)
    mixes[classes, column] = 0
    mixes *= (1 - shares) / mixes.sum(axis=0)
    mixes[classes, column] = shares
    return mixes
