"""The collectives of a loss: what the ranks of a process group know of the batch that they share."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import ProcessGroup as ProcessGroup
else:
    ProcessGroup = Any


def world_size(process_group: ProcessGroup | None) -> int:
    """The number of ranks; 1 without a group."""
    return 1 if process_group is None else process_group.size()


def summed(values: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """The sum over the ranks, the same on each; `values` themselves without a group.

    Every rank's loss depends on every rank's values, so the gradient is summed over the ranks too: each rank
    that calls this with values that need a gradient has to run its backward pass.
    """
    if process_group is None:
        return values
    total: Tensor = _Sum.apply(values, process_group)
    return total


def largest(values: Tensor, process_group: ProcessGroup) -> Tensor:
    """The largest over the ranks, entry by entry, without gradient."""
    result = values.detach().clone()
    torch.distributed.all_reduce(result, torch.distributed.ReduceOp.MAX, group=process_group)
    return result


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(gradient, ctx.process_group), None
