"""Newton's method for calibration by scaling, with one exponential per entry and step."""

import math
from functools import partial
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float, Int, Shaped

from priorshift._blocks import for_blocks
from priorshift._inputs import Array

# Standard deviations of a class's log-odds between 10 and 0.003: beyond them nothing changes in practice.
_RIDGES = np.logspace(-2, 5, 200)
_BLOCK = 2**15  # entries: the arrays of a block stay in the cache of a core
_TOGETHER = 16  # blocks whose mean derivatives are held at once
_ROWS = 256  # samples from which products of matrices of many classes are quick

Params = Float[np.ndarray, " params"]


@final
class Samples:
    """Labelled samples in blocks, classes first, so that sums over the classes are sums of rows."""

    def __init__(
        self,
        scores: Float[np.ndarray, "samples classes"],
        log_carried: Float[np.ndarray, " classes"] | None,
        classes: Int[np.ndarray, " samples"],
        masses: Float[np.ndarray, " samples"],
    ) -> None:
        num_samples, num_classes = scores.shape
        removed = np.zeros(num_classes) if log_carried is None else log_carried
        self.num_classes, self.total = num_classes, float(masses.sum())
        self.counts = np.bincount(classes, weights=masses, minlength=num_classes)
        size = max(_BLOCK // num_classes, min(_ROWS, num_classes))

        def work(rows: slice) -> _Block:
            evidence = np.empty((num_classes, len(classes[rows])))
            np.subtract(scores[rows].T, removed[:, None], out=evidence)
            evidence -= evidence.mean(axis=0)
            places = classes[rows] * evidence.shape[1] + np.arange(evidence.shape[1])
            return _Block(evidence, masses[rows], np.sqrt(masses[rows]), places)

        self.blocks = for_blocks(work, num_samples, 1, entries=size)
        seen = np.concatenate([block.evidence.reshape(-1)[block.places] for block in self.blocks])
        self.observed: Array = np.bincount(classes, weights=masses * seen, minlength=num_classes)

    def scale(self, factor: float) -> None:
        """Multiply the evidence."""
        self.observed = factor * self.observed

        def work(only: slice) -> None:
            for block in self.blocks[only]:
                np.multiply(block.evidence, factor, out=block.evidence)

        for_blocks(work, len(self.blocks), 1, entries=1)


class _Block(NamedTuple):
    evidence: Float[np.ndarray, "classes rows"]
    masses: Float[np.ndarray, " rows"]
    roots: Float[np.ndarray, " rows"]
    places: Int[np.ndarray, " rows"]  # of the true classes


class _Point(NamedTuple):
    """The cross-entropy at some parameters, with its derivatives."""

    loss: float
    gradient: Params
    hessian: Float[np.ndarray, "params params"]


@final
class Problem:
    """Cross-entropy of `scale · evidence + bias + offset`, in the parameters (scales, biases)."""

    def __init__(
        self, samples: Samples, offset: Float[np.ndarray, " classes"], *, method: str, hold: float
    ) -> None:
        # A scale that all classes share is not drawn towards anything by the ridge, only held above zero.
        self.shared, self.hold = method in ("ts", "bcts"), hold
        self.num_scales = 1 if self.shared else samples.num_classes
        self.num_biases = samples.num_classes if method in ("bcts", "vs") else 0
        self.samples, self.offset = samples, offset
        self._known: tuple[Params, _Point] | None = None
        self.start = np.concatenate([np.ones(self.num_scales), np.zeros(self.num_biases)])
        self.units = 1.0 if self.shared else self._information_ratio()

    def split(self, params: Shaped[np.ndarray, " params"]) -> tuple[Array, Array]:
        return params[: self.num_scales], params[self.num_scales :]

    def at(self, params: Params) -> _Point:
        """The cross-entropy with its derivatives, which stays known until another point is asked for."""
        if self._known is None or self._known[0] is not params:
            self._known = params, self._evaluate(params)
        return self._known[1]

    def minimize(self, params: Params, ridge: float, tolerance: float = 1e-12) -> Params:
        """Newton's method with backtracking; the objective is strictly convex and smooth where scales > 0."""
        point = self.at(params)
        value = point.loss + self._penalty(params, ridge)
        for _ in range(100):
            pull, curvature = self._penalty_derivatives(params, ridge)
            gradient = point.gradient + pull
            if np.linalg.norm(gradient) <= tolerance * self.samples.total:
                break
            step = -np.linalg.solve(point.hessian + np.diag(curvature), gradient)
            slope, rounding = float(gradient @ step), 1e-13 * abs(value)
            length = self._longest(params, step)
            while length > 1e-12:
                candidate = params + length * step
                reached = self.at(candidate).loss + self._penalty(candidate, ridge)
                if reached <= value + 1e-4 * length * slope + rounding:
                    break
                length /= 2
            else:
                break
            params, value, point = candidate, reached, self.at(candidate)
        return params

    def likeliest_ridge(self, params: Params) -> float:
        """The ridge of highest marginal likelihood, with the loss replaced by a parabola at `params`."""
        _, gradient, hessian = self.at(params)
        # In these units the prior of every parameter has variance 1/ridge.
        units = np.ones(len(params))
        units[: self.num_scales] = self.units**-0.5
        gradient, hessian = gradient * units, hessian * np.outer(units, units)
        moved = (params - self.start) / units
        if self.shared:
            # The common scale is fitted along with any bias, which takes its share of the information.
            together = hessian[1:, 0] / max(hessian[0, 0], 1e-300)
            hessian = hessian[1:, 1:] - np.outer(together, hessian[0, 1:])
            gradient, moved = gradient[1:] - together * gradient[0], moved[1:]
        score = hessian @ moved - gradient
        curvatures, axes = np.linalg.eigh(hessian)
        seen = curvatures > 1e-10 * max(curvatures[-1], 1e-300)
        curvatures, along = curvatures[seen], (axes.T @ score)[seen]
        variance = curvatures + curvatures**2 / _RIDGES[:, None]
        surprise = (np.log(variance) + along**2 / variance).sum(axis=1)
        return float(_RIDGES[surprise.argmin()])

    def _evaluate(self, params: Params) -> _Point:
        scales, biases = self.split(params)
        constant = self.offset + biases if len(biases) else self.offset
        blocks = self.samples.blocks
        hessian = np.zeros((len(params), len(params)))
        losses: list[float] = []
        sums = np.zeros((3, self.samples.num_classes))
        for first in range(0, len(blocks), _TOGETHER):
            some = blocks[first : first + _TOGETHER]
            work = partial(self._sums, some, scales, constant)
            for loss, found, means in for_blocks(work, len(some), 1, entries=1):
                losses.append(loss)
                sums += found
                hessian -= means @ means.T
        zeroth, first_order, second_order = sums
        index, bias_index = self.split(np.arange(len(params)))
        hessian[index, index] += self._per_scale(second_order)
        gradient = self._per_scale(first_order - self.samples.observed)
        if self.num_biases:
            hessian[bias_index, bias_index] += zeroth
            hessian[index, bias_index] += first_order
            hessian[bias_index, index] += first_order
            gradient = np.concatenate([gradient, zeroth - self.samples.counts])
        return _Point(math.fsum(losses), gradient, hessian)

    def _sums(
        self, blocks: list[_Block], scales: Array, constant: Array, only: slice
    ) -> tuple[float, Float[np.ndarray, "3 classes"], Float[np.ndarray, "params rows"]]:
        """The loss of a block, sums of p, p·s and p·s² by class, and the mean derivatives of its logits."""
        evidence, masses, roots, places = blocks[only.start]
        num_classes, num_rows = evidence.shape
        means = np.empty((self.num_scales + self.num_biases, num_rows))
        probs = means[-num_classes:] if self.num_biases else np.empty(evidence.shape)
        loss = _softmax(evidence, scales, constant, masses, places, out=probs)
        probs *= roots  # the square root of a sample's weight here, and once more in every sum
        scaled = np.multiply(probs, evidence, out=None if self.shared else means[:num_classes])
        if self.shared:
            scaled.sum(axis=0, out=means[0])
        sums = np.empty((3, num_classes))
        np.matmul(probs, roots, out=sums[0])
        np.matmul(scaled, roots, out=sums[1])
        sums[2] = np.multiply(scaled, evidence, out=scaled if self.shared else None) @ roots
        return loss, sums, means

    def _per_scale(self, values: Float[np.ndarray, " classes"]) -> Float[np.ndarray, " scales"]:
        return values.sum(keepdims=True) if self.shared else values

    def _information_ratio(self) -> float:
        """How much more the samples tell of a scale than of a bias, so that one ridge serves both."""
        blocks = self.samples.blocks

        def work(only: slice) -> tuple[float, float]:
            evidence, masses, _, places = blocks[only.start]
            probs = np.empty(evidence.shape)
            _softmax(evidence, self.start[: self.num_scales], self.offset, masses, places, out=probs)
            probs *= 1 - probs
            of_bias = float((probs @ masses).sum())
            probs *= evidence
            probs *= evidence
            return float((probs @ masses).sum()), of_bias

        of_scale, of_bias = map(sum, zip(*for_blocks(work, len(blocks), 1, entries=1), strict=True))
        return max(of_scale, 1e-300) / max(of_bias, 1e-300)

    def _penalty(self, params: Params, ridge: float) -> float:
        scales, biases = self.split(params)
        drawn = (scales - 1 - np.log(scales)).sum()
        return float(self._strength(ridge) * drawn + ridge / 2 * np.square(biases).sum())

    def _penalty_derivatives(self, params: Params, ridge: float) -> tuple[Params, Params]:
        scales, biases = self.split(params)
        strength = self._strength(ridge)
        pull = np.concatenate([strength * (1 - 1 / scales), ridge * biases])
        return pull, np.concatenate([strength / np.square(scales), np.full_like(biases, ridge)])

    def _strength(self, ridge: float) -> float:
        return self.hold if self.shared else ridge * self.units

    def _longest(self, params: Params, step: Params) -> float:
        """The full step, or the part of it that leaves every scale a tenth of its way to zero."""
        scales, change = self.split(params)[0], self.split(step)[0]
        falls = change < 0
        return min(1.0, float((-0.9 * scales[falls] / change[falls]).min())) if falls.any() else 1.0


def _softmax(
    evidence: Float[np.ndarray, "classes rows"],
    scales: Float[np.ndarray, " scales"],
    constant: Float[np.ndarray, " classes"],
    masses: Float[np.ndarray, " rows"],
    places: Int[np.ndarray, " rows"],
    *,
    out: Float[np.ndarray, "classes rows"],
) -> float:
    """Write the probabilities of a block, and return its cross-entropy."""
    np.multiply(evidence, scales[:, None], out=out)
    out += constant[:, None]
    top = out.max(axis=0)
    out -= top
    true = out.reshape(-1)[places]
    np.exp(out, out=out)
    total = out.sum(axis=0)
    out /= total
    return float(masses @ (np.log(total) - true))
