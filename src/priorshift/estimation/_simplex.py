"""Quadratic problems on the simplex of class mixes: one solver for BBSE, RLLS and the label-shift test."""

import math

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dpotrf, dpotrs

_GAP = 1e-16
"""Duality gap at which a solution is exact up to rounding, beside a quadratic form of mean diagonal 1."""
_ACCEPTED = 1e-13
"""Gap that is good enough where steps no longer lower it by a tenth."""
_DAMPING = 0.995
"""Share of the way to the boundary that a step takes."""


def nearest_mix(
    quadratic: Float[np.ndarray, "classes classes"], linear: Float[np.ndarray, " classes"] | None = None
) -> Float[np.ndarray, " classes"]:
    r"""The point of the simplex at which $t^\top Q t / 2 - b^\top t$ is smallest.

    Mehrotra's primal-dual interior point method. Every iterate is feasible in both problems, so the sum of
    $t_y z_y$, with $z$ the slopes above the least one, bounds how far the value is from the smallest one.
    Where several points are equally good, the result lies in the middle of them. Classes that the solution
    leaves out are exactly 0.

    Args:
        quadratic: $Q$, positive semidefinite, `[C, C]`.
        linear: $b$, `[C]`, or 0 for None.

    Reference:
        Mehrotra, *On the implementation of a primal-dual interior point method*, SIAM Journal on Optimization
        1992.
    """
    num_classes = len(quadratic)
    scale = float(quadratic.diagonal().mean()) or 1.0
    quadratic = quadratic / scale
    if linear is None:
        # A constant on all entries changes the value by a constant, and keeps the form away from singular.
        quadratic += 1
        linear = np.ones(num_classes)
    else:
        linear = linear / scale
    ones = np.ones(num_classes)
    damped = np.empty_like(quadratic)
    t = np.full(num_classes, 1 / num_classes)
    z = quadratic @ t - linear
    z += 1 - z.min()
    gap = math.inf
    for _ in range(100):
        last, gap = gap, float(t @ z)
        if gap <= _GAP or (gap <= _ACCEPTED and gap > 0.9 * last):
            break
        np.copyto(damped, quadratic)
        np.einsum("ii->i", damped)[:] += z / t
        # The transpose of a symmetric array is the same in the column order that LAPACK overwrites in place.
        factor, failed = dpotrf(damped.T, lower=1, clean=0, overwrite_a=1)
        if failed:
            break
        centred = dpotrs(factor, ones, lower=1)[0]

        step, goal = _newton_step(np.zeros(num_classes), factor, centred, t, z)
        length = min(_length(t, step), _length(z, goal - z))
        reached = (t + length * step) @ (z + length * (goal - z))
        target = (reached / gap) ** 3 * gap / num_classes
        step, goal = _newton_step(target - step * (goal - z), factor, centred, t, z)
        length = _DAMPING * min(_length(t, step), _length(z, goal - z))
        # The difference of z would lose the digits that tell equally good points apart.
        t, z = t + length * step, (1 - length) * z + length * goal
        t /= t.sum()
    if gap <= _ACCEPTED:
        t[t < z] = 0
        t /= t.sum()
    return t


def _newton_step(
    products: Float[np.ndarray, " classes"],
    factor: Float[np.ndarray, "classes classes"],
    centred: Float[np.ndarray, " classes"],
    t: Float[np.ndarray, " classes"],
    z: Float[np.ndarray, " classes"],
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """The step of t that keeps its sum and makes every t·z be `products`, to first order, and the z there."""
    step = dpotrs(factor, products / t - z, lower=1)[0]
    step -= centred * (step.sum() / centred.sum())
    return step, (products - z * step) / t


def _length(values: Float[np.ndarray, " classes"], step: Float[np.ndarray, " classes"]) -> float:
    """The longest step, at most a whole one once damped, that leaves no value below 0."""
    falling = step < 0
    return min(1 / _DAMPING, float((-values[falling] / step[falling]).min(initial=math.inf)))
