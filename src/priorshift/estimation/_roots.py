"""One root finder for many monotone functions at once, which share the cost of an evaluation."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

_TOLERANCE = 1e-12
"""Size of the last step at which a root is found; what it leaves is smaller by far."""
_STEPS = 100


def find_roots(
    function: Callable[
        [Float[np.ndarray, " roots"]], tuple[Float[np.ndarray, " roots"], Float[np.ndarray, " roots"]]
    ],
    low: Float[np.ndarray, " roots"],
    high: Float[np.ndarray, " roots"],
    guess: Float[np.ndarray, " roots"],
    *,
    tolerance: float = _TOLERANCE,
) -> tuple[Float[np.ndarray, " roots"], Bool[np.ndarray, " roots"]]:
    """Where functions that go from positive to negative between two ends are zero, and whether it was found.

    Newton steps; a bisection instead where one would leave the bracket or not halve the step before it.
    `scipy.optimize.elementwise.find_root` needs SciPy 1.15 and, without derivatives, twice the evaluations.

    Args:
        function: Values and derivatives of all functions at one point each.
        low: Where the brackets begin, `[R]`.
        high: Where they end, `[R]`; a bracket of no length is its root.
        guess: Where to begin; the middle of a bracket if outside of it.
        tolerance: Largest last step.
    """
    middle = (low + high) / 2
    point = np.where((low < guess) & (guess < high), guess, middle)
    step = high - low
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(_STEPS):
            value, derivative = function(point)
            low, high = np.where(value <= 0, low, point), np.where(value > 0, high, point)
            newton = point - value / derivative
            safe = (low <= newton) & (newton <= high) & (np.abs(newton - point) <= step / 2)
            following = np.where(safe, newton, (low + high) / 2)
            step = np.abs(following - point)
            point = following
            if (step <= tolerance).all():
                break
    return point, step <= tolerance
