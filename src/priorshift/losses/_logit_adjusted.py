"""The logit-adjusted softmax cross-entropy and its case of strength 1, Balanced Softmax."""

from functools import partial
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from priorshift import kernels
from priorshift._inputs import ArrayLike
from priorshift.losses._batch import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_shapes,
    like,
    negative_log_softmax,
    reduce,
)
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import finite, one_of
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior


def logit_adjusted_cross_entropy(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Shaped[Tensor, "batch *_"],
    log_prior: Float[Tensor, " classes"],
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Cross-entropy on logits shifted by the log class prior.

    $$\ell(x, y) = -\log \frac{\pi_y^\tau \, e^{f_y(x)}}{\sum_c \pi_c^\tau \, e^{f_c(x)}}$$

    Its minimiser is consistent for the balanced error at $\tau = 1$: predict the argmax of the plain,
    unshifted logits. They carry the prior $\propto \pi^{1-\tau}$, uniform at $\tau = 1$; for another mix,
    `adjust(logits, carried=…, target=target)`. $\tau = 0$ is plain cross-entropy, $\tau = 1$ is Balanced
    Softmax and LADE's Eq. 19.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`; or class probabilities, of the shape of the logits.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        tau: Strength $\tau$ of the shift.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `tau` is not finite or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> logit_adjusted_cross_entropy(logits, labels, torch.tensor([0.9, 0.1]).log())
        tensor(0.2052)

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 10. At $\tau = 1$: Ren et al.,
        *Balanced Meta-Softmax for Long-Tailed Visual Recognition*, NeurIPS 2020, Eq. 4.
    """
    check_shapes(logits, labels, log_prior)
    finite("tau", tau)
    shift = tau * like(log_prior, logits)
    definition = partial(_of_each_position, labels=labels, shift=shift, ignore_index=ignore_index)
    if logits.ndim == 2 and not labels.is_floating_point() and kernels.support(logits, shift):
        losses = kernels.cross_entropy(
            logits,
            labels,
            shift.flatten(),
            ignore_index=ignore_index,
            reduction=one_of("reduction", reduction, REDUCTIONS) if process_group is None else "none",
            definition=definition,
        )
        if process_group is None:
            return losses
    else:
        losses = definition(logits)
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


def _of_each_position(logits: Tensor, *, labels: Tensor, shift: Tensor, ignore_index: int) -> Tensor:
    return negative_log_softmax(at_least_float32(logits) + shift, labels, ignore_index=ignore_index)


class LogitAdjustedLoss(nn.Module):
    r"""`logit_adjusted_cross_entropy` that keeps the training prior; its logits carry $\pi^{1-\tau}$.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        tau: Strength $\tau$; 0 is cross-entropy, 1 is Balanced Softmax.
        ignore_index: As in `logit_adjusted_cross_entropy`.
        reduction: As in `logit_adjusted_cross_entropy`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> LogitAdjustedLoss([0.9, 0.1], tau=0.5).carried_prior
        Prior([0.75, 0.25])
    """

    carried_by: Literal["theory"] = "theory"

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        tau: float = 1.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.tau = finite("tau", tau)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        r"""The prior $\propto \pi^{1-\tau}$."""
        return self.source.prior.tempered(1 - self.tau)

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `logit_adjusted_cross_entropy`."""
        return logit_adjusted_cross_entropy(
            logits,
            labels,
            self.source(logits),
            tau=self.tau,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )


class BalancedSoftmaxLoss(nn.Module):
    r"""Balanced Softmax: `logit_adjusted_cross_entropy` at $\tau = 1$; its logits carry the uniform prior.

    At test time on a uniform mix use the plain logits; on another, `adjust` them from uniform to it.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        ignore_index: As in `logit_adjusted_cross_entropy`.
        reduction: As in `logit_adjusted_cross_entropy`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> BalancedSoftmaxLoss([0.9, 0.1]).carried_prior
        Prior([0.5, 0.5])

    References:
        Ren et al., *Balanced Meta-Softmax for Long-Tailed Visual Recognition*, NeurIPS 2020, Eq. 4.
    """

    carried_by: Literal["theory"] = "theory"

    def __init__(
        self, source: Prior | ArrayLike, *, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The uniform prior."""
        return self.source.prior.tempered(0)

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `logit_adjusted_cross_entropy`."""
        return logit_adjusted_cross_entropy(
            logits,
            labels,
            self.source(logits),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )
