"""Cross-entropy and LADE with a backward pass of their own, over the two functions of a backend."""

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from priorshift.kernels import _cpu
from priorshift.kernels._form import Form

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import ProcessGroup
else:
    ProcessGroup = Any

Definition: TypeAlias = Callable[[Tensor], Tensor]
"""Scores → what the fused function makes of them, by operations that autograd knows."""


def cross_entropy(
    scores: Float[Tensor, "rows classes"],
    labels: Integer[Tensor, " rows"],
    log_prior: Float[Tensor, " classes"],
    *,
    ignore_index: int,
    reduction: Literal["mean", "sum", "none"] = "none",
    definition: Definition,
) -> Float[Tensor, "*_"]:
    """Cross-entropy of the rows of `scores + log_prior`, 0 where ignored, for scores that `support` takes.

    Args:
        scores: Scores, `[M, C]`.
        labels: Class indices, `[M]`.
        log_prior: What is added to every row, `[C]`.
        ignore_index: Rows with this label do not count.
        reduction: The mean over the rows that count, 0 if none does; their sum; or none.
        definition: The cross-entropy of each row from the scores alone, for a second derivative.
    """

    def reduced(losses: Tensor) -> Tensor:
        if reduction == "none":
            return losses
        total = losses.sum()
        return total if reduction == "sum" else total / (labels != ignore_index).sum().clamp(min=1)

    form = None if reduction == "none" else Form(1.0, 0.0, 0.0, released=False, total=reduction == "sum")
    loss = _compiled(
        scores, labels, log_prior, form, ignore_index, lambda scores: reduced(definition(scores))
    )
    if loss is not None:
        return loss
    backend = _backends()[scores.device.type]
    label, counted = _counted(scores, labels, ignore_index)
    surprise: Tensor = _CrossEntropy.apply(scores, label, counted, log_prior, backend, definition)
    return reduced(surprise)


def lade(
    scores: Float[Tensor, "rows classes"],
    labels: Integer[Tensor, " rows"],
    log_prior: Float[Tensor, " classes"],
    *,
    weights: tuple[float, float],
    lam: float,
    released: bool,
    ignore_index: int,
    total: bool = False,
    process_group: ProcessGroup | None,
    definition: Definition,
) -> Float[Tensor, ""]:
    """The cross-entropy of `scores + log_prior` and LADE's regulariser, for scores that `support` takes.

    Args:
        scores: Scores, `[M, C]`.
        labels: Class indices, `[M]`.
        log_prior: Log-prior of the training stream, `[C]`.
        weights: What the mean cross-entropy and the regulariser are multiplied by before they are added.
        lam: Weight of the regulariser's squared term.
        released: Whether the regulariser is that of the authors' code.
        ignore_index: Rows with this label do not count.
        total: Whether to multiply by the number of rows of this process that count.
        process_group: Ranks that the batch is spread over; None is this process alone.
        definition: The same from the scores alone, for a second derivative.
    """
    form = Form(*weights, lam, released, total)
    loss: Tensor | None = None
    if process_group is None:
        loss = _compiled(scores, labels, log_prior, form, ignore_index, definition)
    if loss is not None:
        return loss
    backend = _backends()[scores.device.type]
    label, counted = _counted(scores, labels, ignore_index)
    setting = _Setting(form, process_group, backend, definition)
    loss = _LADE.apply(scores, label, counted, log_prior, setting)
    return loss


def support(scores: Tensor, log_prior: Tensor) -> bool:
    """Whether `cross_entropy` and `lade` take these scores; looks at no value.

    They do not in float64, on devices without a backend, in `torch.compile` (which fuses the definition by
    itself), under transforms of `torch.func` and forward differentiation, or where the prior is trained.
    """
    if torch.compiler.is_compiling() or type(scores) not in (Tensor, nn.Parameter):
        return False
    return (
        scores.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and scores.device.type in _backends()
        and not log_prior.requires_grad
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _backends() -> dict[str, ModuleType]:
    """Device type → its backend. Triton is loaded once a GPU is in use."""
    return _with_triton() if torch.cuda.is_initialized() else _CPU  # type: ignore[no-untyped-call]


_CPU: dict[str, ModuleType] = {"cpu": _cpu}


@cache
def _with_triton() -> dict[str, ModuleType]:
    found = find_spec("triton") is not None
    return _CPU | {"cuda": import_module("priorshift.kernels._triton")} if found else _CPU


def _compiled(
    scores: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    form: Form | None,
    ignore_index: int,
    definition: Definition,
) -> Tensor | None:
    """The loss by Numba; None where that is not installed, or does not take the batch."""
    numba = _numba() if scores.device.type == "cpu" else None
    if numba is None:
        return None
    found = numba.forward(scores, labels, log_prior, form, ignore_index)
    if found is None:
        return None
    loss: Tensor = _Compiled.apply(scores, labels, log_prior, *found, form, ignore_index, numba, definition)
    return loss


@cache
def _numba() -> ModuleType | None:
    try:
        return import_module("priorshift.kernels._numba")
    except ImportError:  # there is none, or none for this version of NumPy
        return None


def _counted(scores: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Indices that are valid in every row, and which rows count; None for all, where that is known."""
    label = labels.long()
    counted = label != ignore_index
    if scores.device.type == "cpu" and bool(counted.all()):
        return label, None
    return torch.where(counted, label, 0), counted


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        labels: Tensor,
        log_prior: Tensor,
        loss: Tensor,
        saved: tuple[Tensor, ...],
        form: Form | None,
        ignore_index: int,
        numba: ModuleType,
        definition: Definition,
    ) -> Tensor:
        ctx.save_for_backward(scores, labels, log_prior, *saved)
        ctx.options, ctx.numba, ctx.definition, ctx.spent = (form, ignore_index), numba, definition, False
        return loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        scores, labels, log_prior, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _through(ctx.definition, scores, by_loss), *[None] * 8
        if ctx.spent:
            with torch.enable_grad():
                _, saved = ctx.numba.forward(scores, labels, log_prior, *ctx.options)
        ctx.spent = True
        return ctx.numba.gradient(labels, saved, by_loss, *ctx.options), *[None] * 8


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        label: Tensor,
        counted: Tensor | None,
        log_prior: Tensor,
        backend: ModuleType,
        definition: Definition,
    ) -> Tensor:
        surprise: Tensor
        surprise, _, _, saved = backend.statistics(scores, label, counted, log_prior, None)
        ctx.save_for_backward(scores, label, counted, log_prior, *saved)
        ctx.backend, ctx.definition = backend, definition
        return surprise

    @staticmethod
    def backward(ctx: Any, by_surprise: Tensor) -> tuple[Tensor | None, ...]:
        scores, label, counted, log_prior, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _through(ctx.definition, scores, by_surprise), *[None] * 5
        if counted is not None:
            by_surprise = torch.where(counted, by_surprise, 0)
        result = ctx.backend.gradient(
            scores, label, counted, log_prior, None, tuple(saved), by_surprise, None, None
        )
        return result, *[None] * 5


class _Setting(NamedTuple):
    form: Form
    process_group: ProcessGroup | None
    backend: ModuleType
    definition: Definition


class _LADE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, label: Tensor, counted: Tensor | None, log_prior: Tensor, setting: _Setting
    ) -> Tensor:
        form, group, num_classes, device = setting.form, setting.process_group, scores.shape[1], scores.device
        if form.released:
            log_weight = torch.zeros(label.shape, device=device)
        else:
            log_weight = log_prior.neg().index_select(0, label)
        if counted is not None:
            log_weight = torch.where(counted, log_weight, torch.finfo(torch.float32).min / 4)
        surprise, own, column, saved = setting.backend.statistics(
            scores, label, counted, log_prior, log_weight
        )

        ones = torch.ones_like(label) if counted is None else counted.long()
        counts = torch.zeros(num_classes, dtype=torch.int64, device=device).index_add_(0, label, ones)
        log_sum, ranks, own_sum = column, 1, None
        own_size = size = label.shape[0] if counted is None else counts.sum()
        if group is not None:
            own_sum = torch.zeros(num_classes, dtype=torch.float64, device=device)
            own_sum.index_add_(0, label, own.double())
            log_sum, own_sum, counts = _of_all_ranks(column, own_sum, counts, group)
            size, ranks = counts.sum(), group.size()

        # From here on "by" is the derivative of the loss by something.
        per_row, log_per_row = _inverse(size)
        log_mean = log_sum + (log_per_row - math.log(num_classes))
        absent = counts == 0
        if form.released:
            log_mean -= log_prior
            absent &= per_row == 0
        log_mean.masked_fill_(absent, 0)
        mass = log_prior.exp().masked_fill_(absent, 0)
        by_own_sum = mass / counts.clamp_(min=1)
        regulariser = torch.dot(mass, torch.addcmul(log_mean, log_mean, log_mean, value=form.lam))
        if own_sum is None:  # over rows, whose order a GPU keeps
            regulariser -= torch.dot(by_own_sum.index_select(0, label).double(), own.double())
        else:
            regulariser -= torch.dot(by_own_sum.double(), own_sum)
        by_column = torch.addcmul(mass, mass, log_mean, value=2 * form.lam)
        if group is not None:
            by_column.mul_((column - log_sum).exp_()).masked_fill_(absent, 0)

        by_surprise = form.of_surprise * (1 if form.total else per_row * ranks)
        by_regulariser = form.of_regulariser * (own_size if form.total else 1)
        ctx.save_for_backward(scores, label, counted, log_prior, log_weight, by_own_sum, by_column, *saved)
        ctx.setting, ctx.by_surprise, ctx.by_regulariser = setting, by_surprise, by_regulariser
        loss: Tensor = regulariser * by_regulariser
        return loss.add_(surprise.sum() * by_surprise) if form.of_surprise else loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        scores, label, counted, log_prior, log_weight, by_own_sum, by_column, *saved = ctx.saved_tensors
        setting = ctx.setting
        if torch.is_grad_enabled():
            return _through(setting.definition, scores, by_loss), *[None] * 4
        by_surprise = (by_loss * ctx.by_surprise).expand(label.shape)
        by_regulariser = by_loss * ctx.by_regulariser
        if setting.process_group is not None:
            # Each rank's loss holds the regulariser of all, and so depends on the scores of this one.
            torch.distributed.all_reduce(by_regulariser, group=setting.process_group)
        by_own = by_own_sum.index_select(0, label).mul_(by_regulariser.neg())
        if counted is not None:
            by_surprise, by_own = torch.where(counted, by_surprise, 0), torch.where(counted, by_own, 0)
        result = setting.backend.gradient(
            scores,
            label,
            counted,
            log_prior,
            log_weight,
            tuple(saved),
            by_surprise,
            by_own,
            by_regulariser * by_column,
        )
        return result, *[None] * 4


def _inverse(size: Tensor | int) -> tuple[Tensor | float, Tensor | float]:
    """One over the number of rows, and its logarithm; 0 and 0 for none."""
    if isinstance(size, int):
        return (1 / size, -math.log(size)) if size else (0.0, 0.0)
    some = size.clamp(min=1).float()
    return torch.where(size > 0, 1 / some, 0), -some.log()


def _of_all_ranks(
    log_sum: Tensor, own_sum: Tensor, counts: Tensor, process_group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-sum-exps, sums and counts of the classes over all ranks; one maximum and three sums travel."""
    top = log_sum.clone()
    torch.distributed.all_reduce(top, torch.distributed.ReduceOp.MAX, group=process_group)
    top.clamp_(min=torch.finfo(top.dtype).min)
    sums = torch.stack([(log_sum - top).exp_().double(), own_sum, counts.double()])
    torch.distributed.all_reduce(sums, group=process_group)
    scaled_sum, own_sum, total = sums.unbind()
    return top + scaled_sum.log().float(), own_sum, total.long()


def _through(definition: Definition, scores: Tensor, by_loss: Tensor) -> Tensor:
    """The gradient by the scores as a function of them, which autograd can differentiate again."""
    return torch.autograd.grad(definition(scores), scores, by_loss, create_graph=True)[0]
