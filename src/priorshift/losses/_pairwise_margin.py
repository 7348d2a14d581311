"""The pairwise margin loss, of which most long-tail losses are cases, and two losses that it leads to."""

from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.losses._batch import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_hard,
    check_shapes,
    like,
    negative_log_softmax,
    reduce,
)
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import finite, non_negative, one_of
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior, as_prior


def pairwise_margin_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    *,
    weights: Float[Tensor, " classes"] | None = None,
    positive: Float[Tensor, " classes"] | None = None,
    negative: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Softmax cross-entropy with a weight for each class and a margin for each pair of classes.

    $$\ell(x, y) = \alpha_y \log\Big[1 + \sum_{y' \ne y} e^{\Delta_{yy'}} e^{f_{y'}(x) - f_y(x)}\Big],
    \qquad \Delta_{yy'} = \text{positive}_y + \text{negative}_{y'}$$

    $\Delta_{yy'}$ is the gap asked for between the score of the true class $y$ and that of a rival $y'$. The
    two vectors stand for the matrix, which is never built. With everything None it is cross-entropy. Cases:

    | loss | `weights` | `positive` | `negative` |
    |---|---|---|---|
    | balanced, Eq. 4 | $1/\pi$ | | |
    | adaptive margin, Eq. 5 | | $\pi^{-1/4}$ | |
    | equalised, Eq. 6 | | | $\log F(\pi)$ |
    | logit-adjusted, Eq. 10 | | $-\tau\log\pi$ | $\tau\log\pi$ |
    | Theorem 1, any $\delta > 0$ | $\delta/\pi$ | $-\log\delta$ | $\log\delta$ |

    If $\text{positive} = -\text{negative} = -\log\delta$, the logits come to carry the prior
    $\propto \pi\alpha/\delta$, uniform in Theorem 1. Otherwise they carry none; their authors use them plain
    on a uniform mix.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        weights: Class weights $\alpha$, `[C]`, taken as they are; None means 1.
        positive: The true class's part of the margin, `[C]`; None means 0.
        negative: The rival's part of the margin, `[C]`; None means 0.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> pairwise_margin_loss(logits, labels, positive=torch.tensor([0.5, 1.5]))
        tensor(0.3377)

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Eq. 11 and Theorem 1.
    """
    check_shapes(logits, labels, weights, "weights")
    check_shapes(logits, labels, positive, "positive")
    check_shapes(logits, labels, negative, "negative")
    check_hard(labels, "pairwise_margin_loss")
    scores = at_least_float32(logits)
    counted = labels.long() != ignore_index
    label = torch.where(counted, labels, 0).long()
    shifted = scores if negative is None else scores + like(negative, scores)
    if positive is not None or negative is not None:
        own = scores.gather(1, label.unsqueeze(1))
        if positive is not None:
            own = own - like(positive, scores).flatten()[label].unsqueeze(1)
        shifted = shifted.scatter(1, label.unsqueeze(1), own)
    losses = negative_log_softmax(shifted, labels, ignore_index=ignore_index)
    if weights is not None:
        losses = like(weights, scores).flatten()[label] * losses
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


class PairwiseMarginLoss(nn.Module):
    r"""`pairwise_margin_loss` with $\Delta_{yy'} = \tau_2 \log \pi_{y'} - \tau_1 \log \pi_y$.

    $\tau_1 = \tau_2 = \tau$ is the logit-adjusted loss: the logits carry the prior
    $\propto \pi^{1-\tau} \alpha$. $\tau_1 = 0$ is the equalised loss of Menon et al., Section 6.1. For
    $\tau_1 \ne \tau_2$ they carry none, by convention the uniform one. Section 5.3 prints $\Delta$ with the
    opposite sign, which contradicts its own Eq. 6 and 10 and moves the scorer towards the frequent
    classes.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        tau1: Strength $\tau_1$ for the true class.
        tau2: Strength $\tau_2$ for its rivals.
        weights: Positive class weights $\alpha$, `[C]`, scaled to $\sum_c \pi_c \alpha_c = 1$; None means 1.
        ignore_index: As in `pairwise_margin_loss`.
        reduction: As in `pairwise_margin_loss`.

    Raises:
        ValueError: If `source` or `weights` is not strictly positive, their lengths differ, or a strength is
            not finite.

    Example:
        >>> loss = PairwiseMarginLoss([0.9, 0.1], tau1=0.5, tau2=0.5)
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.75, 0.25]), 'theory')

    References:
        Menon et al., ICLR 2021, Section 5.3.
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        tau1: float = 1.0,
        tau2: float = 1.0,
        weights: ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        pi = self.source.prior
        alpha = None if weights is None else as_prior(weights, "weights", pi.num_classes, names=pi.names)
        self.weights = None if alpha is None else SourcePrior(alpha.require_positive("weights"))
        self.tau1 = finite("tau1", tau1)
        self.tau2 = finite("tau2", tau2)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        r"""The prior $\propto \pi^{1-\tau} \alpha$ if $\tau_1 = \tau_2 = \tau$, else the uniform one."""
        source = self.source.prior
        if self.tau1 != self.tau2:
            return source.tempered(0)
        carried = source.tempered(1 - self.tau1)
        if self.weights is None:
            return carried
        return Prior(carried.probs * self.weights.prior.probs, names=source.names)

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        r"""By theory if $\tau_1 = \tau_2$."""
        return "theory" if self.tau1 == self.tau2 else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `pairwise_margin_loss`."""
        log_prior = self.source(logits)
        weights = None
        if self.weights is not None:
            log_weights = self.weights(logits)
            weights = (log_weights - torch.logsumexp(log_prior + log_weights, dim=0)).exp()
        return pairwise_margin_loss(
            logits,
            labels,
            weights=weights,
            positive=-self.tau1 * log_prior,
            negative=self.tau2 * log_prior,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )


def logit_adjusted_adaptive_cross_entropy(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    tau: float = 1.0,
    margin: float = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""The logit-adjusted loss plus the adaptive margin.

    $$\ell(x, y) = \log\Big[1 + \sum_{y' \ne y} e^{\Delta_{yy'}} e^{f_{y'}(x) - f_y(x)}\Big], \qquad
    \Delta_{yy'} = \tau \log \frac{\pi_{y'}}{\pi_y} + m\, \pi_y^{-1/4}$$

    The paper has $\tau = m = 1$. $m = 0$ is the logit-adjusted loss, $\tau = 0$ the adaptive margin alone
    (Eq. 5). For $m > 0$ it is not consistent for the balanced error where classes overlap, and the logits
    carry no prior; its authors use them plain on a uniform mix.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        tau: Strength $\tau$ of the logit adjustment.
        margin: Factor $m \ge 0$ of the adaptive margin.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `tau` is not finite, `margin` is negative or `reduction` is
            unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> logit_adjusted_adaptive_cross_entropy(logits, labels, torch.tensor([0.9, 0.1]).log())
        tensor(0.7017)

    References:
        Menon et al., ICLR 2021, Section 6.2; the margin is that of Cao et al., NeurIPS 2019, without their
        normalisation to a largest margin.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "logit_adjusted_adaptive_cross_entropy")
    finite("tau", tau)
    non_negative("margin", margin)
    return pairwise_margin_loss(
        logits,
        labels,
        positive=margin * (-log_prior / 4).exp() - tau * log_prior,
        negative=tau * log_prior,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )


class LogitAdjustedAdaptiveLoss(nn.Module):
    r"""`logit_adjusted_adaptive_cross_entropy` that keeps the training prior.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        tau: Strength $\tau$ of the logit adjustment.
        margin: Factor $m \ge 0$ of the adaptive margin; 0 is the logit-adjusted loss.
        ignore_index: As in `logit_adjusted_adaptive_cross_entropy`.
        reduction: As in `logit_adjusted_adaptive_cross_entropy`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> loss = LogitAdjustedAdaptiveLoss([0.9, 0.1])
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.5, 0.5]), 'convention')
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        tau: float = 1.0,
        margin: float = 1.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.tau = finite("tau", tau)
        self.margin = non_negative("margin", margin)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        r"""The uniform prior; $\propto \pi^{1-\tau}$ if $m = 0$."""
        source = self.source.prior
        return source.tempered(1 - self.tau) if self.margin == 0 else source.tempered(0)

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        r"""By convention, unless $m = 0$."""
        return "theory" if self.margin == 0 else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `logit_adjusted_adaptive_cross_entropy`."""
        return logit_adjusted_adaptive_cross_entropy(
            logits,
            labels,
            self.source(logits),
            tau=self.tau,
            margin=self.margin,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )
