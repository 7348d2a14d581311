"""The search of the likelihood for its maximum on the simplex."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_solve, cholesky

Vector: TypeAlias = Float[np.ndarray, " classes"]

_FACTORED = 4096
"""Classes up to which second derivatives seed the search."""
_ROUNDING = 1e-13
"""Decrease of the value that counts as none."""


@dataclass(frozen=True)
class Point:
    """A point of the search over square roots: `value` is $L(s^2) - |s|^2 + 1$ and `slope` its gradient."""

    roots: Vector
    value: float
    slope: Vector
    gradient: Vector

    @property
    def probs(self) -> Vector:
        return np.asarray(np.square(self.roots))

    @property
    def shortfall(self) -> float:
        # At the normalized prior the gradient is larger by the sum; rounding may leave the maximum below 1.
        return max(0.0, float(np.log(self.gradient.max() * self.probs.sum())))


def ascend(
    evaluate: Callable[[Vector], tuple[float, Vector]],
    second_derivatives: Callable[[Vector], Float[np.ndarray, "classes classes"]],
    probs: Vector,
    *,
    slack: float,
    tolerance: float,
    max_steps: int,
) -> tuple[Point, int]:
    """Climb a concave function of a prior until its certificate is at most `tolerance`.

    Args:
        evaluate: The value and its gradient, whose product with the prior is 1.
        second_derivatives: Minus the second derivatives.
        probs: Where to begin, positive.
        slack: Relative rounding of the second derivatives.
        tolerance: The shortfall at which to stop.
        max_steps: Evaluations after which to give up.

    Returns:
        Where it ends, and the number of evaluations that it took.
    """
    steps = 0

    def at(roots: Vector) -> Point:
        nonlocal steps
        steps += 1
        value, gradient = evaluate(np.square(roots))
        return Point(roots, value + 1 - float(roots @ roots), 2 * roots * (gradient - 1), gradient)

    point = at(np.sqrt(probs))
    for _ in range(3):
        if steps < max_steps:
            point = at(np.sqrt(point.probs * point.gradient))
    memory = _Memory()
    age, refresh = 0, max(1, len(probs) // 64)
    while steps < max_steps and point.shortfall > tolerance:
        if len(probs) <= _FACTORED and (age := age + 1) >= refresh:
            memory, age = _Memory(_solver(second_derivatives(point.probs), point, slack)), 0
        direction = memory.direction(point.slope)
        for halvings in range(6):
            step = 0.5**halvings
            trial = at(point.roots + step * direction)
            if trial.value >= point.value + 1e-4 * step * float(direction @ point.slope) - _ROUNDING:
                break
        else:
            memory = _Memory()
            trial = at(np.sqrt(point.probs * point.gradient))
        memory.add(trial.roots - point.roots, point.slope - trial.slope)
        point = trial
    return point, steps


def _solver(
    curvature: Float[np.ndarray, "classes classes"], point: Point, slack: float
) -> Callable[[Vector], Vector]:
    """Solves for minus the second derivatives in the roots, made positive definite."""
    matrix = 4 * point.roots[:, None] * curvature * point.roots
    diagonal = np.einsum("ii->i", matrix)
    diagonal *= 1 + slack
    diagonal += 2 * np.abs(1 - point.gradient) + 1e-9
    factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    return lambda vector: np.asarray(cho_solve((factor, True), vector, check_finite=False))


class _Memory:
    """The steps and changes of slope that L-BFGS keeps, on a seed: a solver or a scale."""

    def __init__(
        self,
        solve: Callable[[Vector], Vector] | None = None,
        length: int = 20,
    ) -> None:
        self._solve, self._length = solve, length
        self._pairs: list[tuple[Vector, Vector]] = []

    def add(self, step: Vector, change: Vector) -> None:
        if step @ change > 1e-10 * np.linalg.norm(step) * np.linalg.norm(change):
            self._pairs = [*self._pairs, (step, change)][-self._length :]

    def direction(self, slope: Vector) -> Vector:
        vector, shares = slope.copy(), []
        for step, change in reversed(self._pairs):
            shares.append((step @ vector) / (step @ change))
            vector -= shares[-1] * change
        vector = vector / 4 if self._solve is None else self._solve(vector)
        for (step, change), share in zip(self._pairs, reversed(shares), strict=True):
            vector += step * (share - (change @ vector) / (step @ change))
        return vector
