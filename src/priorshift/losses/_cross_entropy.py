"""Softmax cross-entropy, the baseline: what PC Softmax and post-hoc logit adjustment start from."""

from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.losses._batch import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_shapes,
    negative_log_softmax,
    reduce,
)
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import one_of, share
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior


def cross_entropy(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Shaped[Tensor, "batch *_"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Softmax cross-entropy.

    $$\ell(x, y) = -\log \frac{e^{f_y(x)}}{\sum_c e^{f_c(x)}}$$

    The logits come to carry the prior of the training stream. At test time, move them to the deployed mix:
    `adjust(logits, carried=source, target=target)`, which is PC Softmax. Differs from
    `torch.nn.functional.cross_entropy` in two points: the half precisions are computed and returned in
    float32, and a batch in which every label is ignored has mean 0.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`; or class probabilities, of the shape of the logits.
        label_smoothing: Mass $\epsilon$ of the label that is spread over all classes. A scorer trained with
            $\epsilon > 0$ carries no prior.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `label_smoothing` is outside [0, 1] or `reduction` is unknown.

    Example:
        >>> import torch
        >>> cross_entropy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.1809)

    References:
        Hong et al., CVPR 2021, Eq. 1–2; Menon et al., ICLR 2021, Eq. 1.
    """
    check_shapes(logits, labels, None)
    share("label_smoothing", label_smoothing)
    losses = negative_log_softmax(
        at_least_float32(logits), labels, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


class CrossEntropyLoss(nn.Module):
    """`cross_entropy` that knows the prior its logits will carry: that of the training stream.

    Args:
        source: Class prior of the stream that the loss sees (the data as the sampler deals it), `[C]`.
        label_smoothing: As in `cross_entropy`. Above 0, the carried prior is only a convention.
        ignore_index: As in `cross_entropy`.
        reduction: As in `cross_entropy`.

    Example:
        >>> CrossEntropyLoss([0.9, 0.1]).carried_prior
        Prior([0.9, 0.1])
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.label_smoothing = share("label_smoothing", label_smoothing)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The source prior."""
        return self.source.prior

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        """By theory, unless labels are smoothed."""
        return "theory" if self.label_smoothing == 0 else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `cross_entropy`."""
        return cross_entropy(
            logits,
            labels,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )
