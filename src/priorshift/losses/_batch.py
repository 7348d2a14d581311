"""What every loss does with a batch: check its shapes, put classes last, leave out ignored labels, reduce."""

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from priorshift.losses._group import ProcessGroup, summed, world_size
from priorshift.losses._settings import one_of

Reduction: TypeAlias = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)


def check_shapes(
    logits: Tensor, labels: Tensor, per_class: Tensor | None, argument: str = "log_prior"
) -> None:
    """Refuse a batch whose shapes do not fit; looks at shapes and dtypes only, never at values.

    Raises:
        TypeError: If `logits` is not floating-point, or `labels` are neither indices nor probabilities.
        ValueError: If a shape does not fit; the message names `argument` for the per-class vector.
    """
    if not logits.is_floating_point():
        raise TypeError(f"Expected `logits` to be floating-point, but got dtype {logits.dtype}.")
    if logits.ndim < 2:
        raise ValueError(f"Expected `logits` of shape [N, C] or [N, C, …], but got {tuple(logits.shape)}.")
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(
                f"Expected soft `labels` of the shape of the logits, {tuple(logits.shape)}, "
                f"but got {tuple(labels.shape)}."
            )
    elif labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(
            f"Expected `labels` to be class indices or probabilities, but got dtype {labels.dtype}."
        )
    elif labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"Expected `labels` of shape {tuple(logits.shape[:1] + logits.shape[2:])}, one for each row of "
            f"logits {tuple(logits.shape)}, but got {tuple(labels.shape)}."
        )
    if per_class is not None and not isinstance(per_class, Tensor):
        raise TypeError(
            f"Expected `{argument}` to be a tensor, but got {type(per_class).__name__}: use `torch.tensor`."
        )
    if per_class is not None and per_class.shape != logits.shape[1:2]:
        raise ValueError(
            f"Expected `{argument}` with one entry per class, {tuple(logits.shape[1:2])}, "
            f"but got shape {tuple(per_class.shape)}."
        )


def check_hard(labels: Tensor, name: str) -> None:
    """Refuse soft labels in a loss that is defined for class indices alone.

    Raises:
        TypeError: If `labels` are floating-point.
    """
    if labels.is_floating_point():
        raise TypeError(f"Expected `labels` of {name} to be class indices, but got dtype {labels.dtype}.")


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits in the dtype that losses compute in: float32 for the half precisions, else their own."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def like(per_class: Tensor, logits: Tensor) -> Tensor:
    """A per-class vector where and how a loss of `logits` computes, shaped to broadcast over dimension 1.

    The dtype goes first, since some devices have no float64.
    """
    vector = per_class.to(torch.promote_types(logits.dtype, torch.float32)).to(logits.device)
    return vector.view((1, -1) + (1,) * (logits.ndim - 2))


def rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, C, …]` logits and `[N, …]` labels as one row per labelled position: `[M, C]` and `[M]`."""
    if logits.ndim == 2:
        return logits, labels
    return logits.movedim(1, -1).flatten(0, -2), labels.flatten()


def at_labels(per_class: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The entry of a per-class vector at each label, 0 where the label is ignored."""
    counted = labels.long() != ignore_index
    return torch.where(counted, per_class.to(labels.device)[torch.where(counted, labels, 0).long()], 0)


def negative_log_softmax(
    logits: Tensor, labels: Tensor, *, ignore_index: int, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each position, shape of the batch without its class dimension; 0 where ignored."""
    soft = labels.is_floating_point()
    return F.cross_entropy(
        logits,
        labels.to(logits.dtype) if soft else labels.long(),
        reduction="none",
        ignore_index=-100 if soft else ignore_index,
        label_smoothing=label_smoothing,
    )


def reduce(
    losses: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    reduction: Reduction,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Reduce per-position losses, already 0 where ignored. The mean is over the positions that count.

    A batch in which no position counts has mean 0 with gradient 0 (torch's own losses return NaN there,
    which would end a training run on an empty shard). With a process group the mean over its ranks of what
    they return is the mean over all their positions; "sum" and "none" are of this rank's own.

    Raises:
        ValueError: If `reduction` is none of "mean", "sum" and "none".
    """
    if one_of("reduction", reduction, REDUCTIONS) == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    count = summed(num_valid(labels, losses, ignore_index), process_group)
    return mean_of(losses.sum(), count, process_group)


def mean_of(total: Tensor, count: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """A sum over the positions of this rank, divided by the `count` of a rank on average; 0 if that is 0.

    `count` is that of all ranks together, so the ranks' average is the mean over all their positions.
    """
    return total * world_size(process_group) / torch.where(count > 0, count, 1)


def num_valid(labels: Tensor, losses: Tensor, ignore_index: int) -> Tensor:
    """The number of positions that count, as a tensor on the device of the losses."""
    if labels.is_floating_point():
        return torch.tensor(losses.numel(), device=losses.device)
    return (labels.long() != ignore_index).sum()
