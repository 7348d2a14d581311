r"""Both passes on a CPU in loops that Numba compiles, where it is installed: one sweep each, in one thread.

With $m_i = \max_c f_{ic}$ and $t = \pi / \max \pi$ the one exponential is $E_{ic} = e^{f_{ic} - m_i}$. Then
$\mathrm{softmax}(f + \log\pi)_{ic} = E_{ic} t_c / s_i$ with $s_i = \sum_c E_{ic} t_c$, a column sum is
$\sum_i (w_i e^{m_i}) E_{ic}$, and the gradient of what is made of rows and columns is $E$ times a matrix of
rank two, but for the labels. It is written over $E$.

What does not fit is left to `_cpu.py`: other dtypes and strides, no rows, labels out of range, scores so far
apart, or so infinite, that a sum would underflow, and so many that it is worth to wake other threads.
"""

# Numba has no types that mypy knows, but wrong ones of what it compiles.
# mypy: disable-error-code="call-arg, unreachable"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from priorshift.kernels._form import Form

FEW = 1 << 19
"""Scores that one thread is done with before several would be."""
SMALLEST = 1e-24
"""A sum from here on misses nothing that counts where its terms below 1e-37 become that."""

Saved: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""$E$, without rows for scores that need no gradient; for each row $1/s$, $w_i e^{m_i}$ and the derivative by
the cross-entropy; for each class $t$ and the derivatives by an own score and by the column sum."""


def forward(
    scores: Tensor, labels: Tensor, log_prior: Tensor, form: Form | None, ignore_index: int
) -> tuple[Tensor, Saved] | None:
    """Cross-entropy of each row or what has that form; None where scores or labels do not fit."""
    (rows, classes), threads = scores.shape, torch.get_num_threads()
    fits = scores.dtype == torch.float32 and scores.is_contiguous() and rows > 0
    if not fits or scores.numel() * (threads - 2) > FEW * threads:
        return None
    keep = scores.requires_grad and torch.is_grad_enabled()
    saved = large_empty(rows if keep else 0, classes), torch.empty(3, rows), torch.empty(3, classes)
    num_sums = classes if _regularised(form) else 0
    losses, sums = torch.empty(rows), torch.empty(num_sums, dtype=torch.float64)
    kept, of_rows, of_classes, surprise = (x.numpy() for x in (*saved, losses))
    label, log_pi = _array(labels.long()), _array(log_prior)
    most = _tilt(log_pi, of_classes[0])
    top = _sweep(
        _array(scores), label, ignore_index, log_pi, most, of_classes[0],
        kept, *of_rows, surprise, sums.numpy(), form is not None and not form.released,
    )  # fmt: skip
    if math.isnan(top):
        return None
    if form is None:
        of_rows[2] = 1
        return losses, saved
    log_sums = sums.log()
    loss = _reduce(
        label, ignore_index, surprise, log_pi, most, *of_rows[1:], *of_classes,
        sums.numpy(), log_sums.numpy(), top, *form,
    )  # fmt: skip
    return None if math.isnan(loss) else (torch.scalar_tensor(loss), saved)


def gradient(labels: Tensor, saved: Saved, by_loss: Tensor, form: Form | None, ignore_index: int) -> Tensor:
    """The gradient by the scores, written over what was saved."""
    kept, of_rows, of_classes = (tensor.detach().numpy() for tensor in saved)
    by_row = _array(by_loss.expand(len(kept)))
    _write(kept, _array(labels.long()), ignore_index, *of_rows, *of_classes, by_row, _regularised(form))
    return saved[0].detach()


def _regularised(form: Form | None) -> bool:
    return form is not None and form.of_regulariser != 0


def large_empty(*shape: int) -> Tensor:
    """Memory for what is as large as the scores: NumPy's, which asks the system for huge pages.

    Page by page, as torch has it, handing out the memory of a large batch takes longer than its loss.
    """
    return torch.from_numpy(np.empty(shape, np.float32))


def _array(tensor: Tensor) -> Any:
    """The numbers of a tensor in order; not a copy where they lie so."""
    return tensor.detach().contiguous().numpy()


def _compiled(**options: Any) -> Any:
    """Numba's decorator, with what it compiled kept on disk where there is a place for it."""

    def decorate(function: Any) -> Any:
        try:
            return njit(function, nogil=True, cache=True, **options)
        except RuntimeError:
            return njit(function, nogil=True, **options)

    return decorate


# The same input gives the same bits. Whether a loop that writes is vectorised depends on where its arrays
# lie, so it holds nothing that would then be rounded otherwise; the one sum over scores writes nothing.

INT, FLOAT = ir.IntType(32), ir.FloatType()


@intrinsic
def _at_least(context, x, low):
    """The larger of two; NaN of NaN and a number. Branches and Numba's `max` would not be vectorised."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return types.float32(types.float32, types.float32), generate


@intrinsic
def _larger(context, x, y):
    """The larger of two 32-bit integers, which Numba's own operators would make 64 bits wide."""

    def generate(context, builder, signature, args):
        return builder.select(builder.icmp_signed(">", *args), *args)

    return types.int32(types.int32, types.int32), generate


def _in_order(builder, bits):
    """Bits of a float, as an integer of the same order; and of such an integer those of the float."""
    return builder.xor(bits, builder.and_(builder.ashr(bits, INT(31)), INT(0x7FFFFFFF)))


@intrinsic
def _rank(context, x):
    """An integer for each float, in their order: a maximum of integers is vectorised, NaN or not."""

    def generate(context, builder, signature, args):
        return _in_order(builder, builder.bitcast(args[0], INT))

    return types.int32(types.float32), generate


@intrinsic
def _ranked(context, rank):
    def generate(context, builder, signature, args):
        return builder.bitcast(_in_order(builder, args[0]), FLOAT)

    return types.float32(types.int32), generate


@intrinsic
def _two_to(context, shifted):
    """2^n, given n + 1.5 · 2^23."""

    def generate(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], INT), INT(23))
        return builder.bitcast(builder.add(bits, INT(0x3F800000)), FLOAT)

    return types.float32(types.float32), generate


ROUND, LOG2_E = np.float32(1.5 * 2**23), np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
LEAST = np.float32(-87.3)
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
C3, C4, C5, C6, C7 = (
    np.float32(c)
    for c in (1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)


@intrinsic
def _fma(context, x, y, z):
    """Product and sum, rounded once."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


@_compiled()
def _exp(x):
    """e^x to a rounding or two, for x up to 88; no less than e^LEAST, so that nothing is subnormal."""
    x = _at_least(x, LEAST)
    shifted = _fma(x, LOG2_E, ROUND)
    n = shifted - ROUND
    x = _fma(n, -LN2_LOW, _fma(n, -LN2_HIGH, x))
    p = _fma(_fma(_fma(_fma(_fma(C7, x, C6), x, C5), x, C4), x, C3), x, HALF)
    return _fma(p, x * x, x + ONE) * _two_to(shifted)


@_compiled()
def _largest(row):
    rank = np.int32(-(2**31))
    for c in range(len(row)):
        rank = _larger(_rank(row[c]), rank)
    return _ranked(rank)


@_compiled()
def _exponentials(row, top, out):
    for c in range(len(row)):
        out[c] = _exp(row[c] - top)


@_compiled(fastmath={"reassoc", "contract"})
def _dot(x, y):
    total = ZERO
    for c in range(len(x)):
        total += x[c] * y[c]
    return total


@_compiled()
def _add(factor, row, sums):
    for c in range(len(row)):
        sums[c] += factor * row[c]


@_compiled()
def _tilt(log_prior, tilt):
    """The prior by its largest mass; returns the logarithm of that."""
    most = _largest(log_prior)
    for c in range(len(tilt)):
        tilt[c] = _exp(log_prior[c] - most)
    return most


@_compiled()
def _sweep(
    scores, label, ignore_index, log_prior, most, tilt,
    kept, inverse, weight, own, surprise, sums, weighted,
):  # fmt: skip
    """Fill in all from `kept` on; returns the logarithm of the sums' scale, NaN where rows do not fit."""
    sums[:] = 0
    top, classes = -math.inf, scores.shape[1]
    one_row = np.empty(0 if len(kept) else classes, np.float32)
    for i in range(len(scores)):
        y = label[i]
        if y == ignore_index:
            surprise[i] = 0
            continue
        if y < 0 or y >= classes:
            return math.nan
        e = kept[i] if len(kept) else one_row
        highest = _largest(scores[i])
        _exponentials(scores[i], highest, e)
        total = _dot(e, tilt)
        if not total > SMALLEST:
            return math.nan
        inverse[i], own[i] = ONE / total, scores[i, y]
        surprise[i] = (highest - own[i]) + (most - log_prior[y]) + math.log(total)
        if len(sums):
            weight[i] = highest - (log_prior[y] if weighted else ZERO)
            if weight[i] > top:
                if top > -math.inf:
                    sums *= math.exp(top - weight[i])
                top = weight[i]
            _add(math.exp(weight[i] - top), e, sums)
    return top


@_compiled()
def _reduce(
    label, ignore_index, surprise, log_prior, most, weight, own, tilt, by_own, by_sum,
    sums, log_sums, top, of_surprise, of_regulariser, lam, released, total,
):  # fmt: skip
    """The loss of the batch, NaN where a sum is too small; completes what is saved."""
    size, entropy = 0, 0.0
    for i in range(len(label)):
        if label[i] != ignore_index:
            size += 1
            entropy += surprise[i]
    if size == 0:
        return math.nan
    if total:
        of_regulariser *= size
    else:
        of_surprise /= size
    loss = of_surprise * entropy
    if len(sums):
        loss += _regularise(
            label, ignore_index, log_prior, weight, own, tilt, by_own, by_sum,
            sums, log_sums, top, of_regulariser * math.exp(most), size, lam, released,
        )  # fmt: skip
    own[:] = of_surprise
    return loss


@_compiled()
def _regularise(
    label, ignore_index, log_prior, weight, own, tilt, by_own, by_sum,
    sums, log_sums, top, scale, size, lam, released,
):  # fmt: skip
    """The regulariser, times the scale of the tilt."""
    classes = len(sums)
    counts, own_sums = np.zeros(classes, np.int64), np.zeros(classes)
    for i in range(len(label)):
        if label[i] != ignore_index:
            counts[label[i]] += 1
            own_sums[label[i]] += own[i]
            weight[i] = math.exp(weight[i] - top)
    loss, log_places = 0.0, math.log(size * classes)
    for c in range(classes):
        by_own[c] = by_sum[c] = 0
        if counts[c] == 0 and not released:
            continue
        if not sums[c] > SMALLEST:
            return math.nan
        mass = scale * tilt[c]
        mean = top + log_sums[c] - log_places - (log_prior[c] if released else ZERO)
        loss += mass * (mean + lam * mean * mean)
        by_sum[c] = mass * (1 + 2 * lam * mean) / sums[c]
        if counts[c]:
            loss -= mass / counts[c] * own_sums[c]
            by_own[c] = -mass / counts[c]
    return loss


@_compiled()
def _mix(row, of_prior, tilt, of_sum, by_sum):
    for c in range(len(row)):
        row[c] *= of_prior * tilt[c] + of_sum * by_sum[c]


@_compiled()
def _scale(row, of_prior, tilt):
    for c in range(len(row)):
        row[c] *= of_prior * tilt[c]


@_compiled()
def _write(
    kept, label, ignore_index, inverse, weight, by_surprise, tilt, by_own, by_sum, by_loss, regularised
):
    """The gradient, over the exponentials."""
    for i in range(len(kept)):
        y, row = label[i], kept[i]
        if y == ignore_index:
            row[:] = 0
            continue
        by_row = by_loss[i] * by_surprise[i]
        if regularised:
            _mix(row, by_row * inverse[i], tilt, by_loss[i] * weight[i], by_sum)
            row[y] += by_loss[i] * by_own[y]
        else:
            _scale(row, by_row * inverse[i], tilt)
        row[y] -= by_row
