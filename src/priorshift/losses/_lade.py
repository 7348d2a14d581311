"""LADE: cross-entropy on shifted logits plus a regulariser that disentangles them from the class prior."""

import math
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from priorshift import kernels
from priorshift._inputs import ArrayLike
from priorshift.losses._batch import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_hard,
    check_shapes,
    like,
    mean_of,
    negative_log_softmax,
    rows,
)
from priorshift.losses._group import ProcessGroup, largest, summed
from priorshift.losses._settings import non_negative, one_of
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior

Variant: TypeAlias = Literal["paper", "released"]
VARIANTS = get_args(Variant)


def lader(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    lam: float,
    variant: Variant = "paper",
    ignore_index: int = -100,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""The label distribution disentangling regulariser of a batch.

    $$\mathcal{L} = \sum_{c \in S} \pi_c
    \left( -\frac{1}{N_c} \sum_{i: y_i = c} f_c(x_i) + L_c + \lambda L_c^2 \right), \qquad
    L_c = \log \frac1N \sum_i \frac{1/C}{\pi_{y_i}}\, e^{f_c(x_i)}$$

    $S$ are the classes in the batch, $N_c$ their counts. Over a whole population and for $\lambda > 0$ its
    minimiser is $f_c(x) = \log\big(C\, p_u(c \mid x)\big)$, the log-likelihood ratio of a class against the
    *uniform* mix: logits that carry the uniform prior, and are normalised besides.

    `variant="released"` is what the authors' code computes: the importance weight $(1/C)/\pi$ stands on the
    class $c$ of the column instead of the label $y_i$ of the sample, where it is a constant, and the sum runs
    over all $C$ classes, so that absent ones are pushed down. Its population minimiser is
    $\log\big(C\, p_s(c \mid x)\big)$: it pulls the logits *towards* the source posterior.

    With a process group $N$, $N_c$ and the means are those of the batch of all its ranks, and each returns
    the same value. One maximum and three sums for each class travel between them, never the logits.

    The logarithm of a batch mean is biased. For a class that is expected less than about once a batch the
    first term is seen only in batches where that class is over-represented; `docs/lade.md` has the size.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`; every position is a sample.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        lam: Weight $\lambda \ge 0$ of the squared term. At 0 each column is free up to a constant.
        variant: "paper" (Eq. 15–16 as printed, $\alpha_c = \pi_c$) or "released".
        ignore_index: Positions with this label do not count.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Returns:
        A scalar; 0 for a batch in which no position counts.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `lam` is negative or `variant` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> lader(logits, labels, torch.tensor([0.9, 0.1]).log(), lam=0.1)
        tensor(0.0185)

    References:
        Hong et al., *Disentangling Label Distribution for Long-tailed Visual Recognition*, CVPR 2021,
        Definition 3.2, Eq. 15–16.
    """
    scores, indices, log_pi = _checked(logits, labels, log_prior, lam, variant)
    definition = partial(
        _lader,
        labels=indices,
        log_pi=log_pi,
        lam=lam,
        variant=variant,
        ignore_index=ignore_index,
        process_group=process_group,
    )
    if not kernels.support(scores, log_pi):
        return definition(scores)[0]
    return kernels.lade(
        scores,
        indices,
        log_pi,
        weights=(0.0, 1.0),
        lam=lam,
        released=variant == "released",
        ignore_index=ignore_index,
        process_group=process_group,
        definition=lambda scores: definition(scores)[0],
    )


def _lader(
    scores: Tensor,
    *,
    labels: Tensor,
    log_pi: Tensor,
    lam: float,
    variant: Variant,
    ignore_index: int,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """The definition of `lader` for one row a position, and the number of them that count on all ranks."""
    scores = at_least_float32(scores)
    num_classes = scores.shape[1]

    counted = labels.long() != ignore_index
    scores = torch.where(counted[:, None], scores, 0)
    label = torch.where(counted, labels, 0).long()
    per_class = torch.zeros(num_classes, dtype=torch.int64, device=label.device)
    per_class = per_class.index_add(0, label, counted.long())
    own_logit = torch.where(counted, scores.gather(1, label[:, None]).squeeze(1), 0)
    # Millions of positions add up here; MPS has no float64.
    wide = scores.dtype if scores.device.type == "mps" else torch.float64
    own_sum = torch.zeros(num_classes, dtype=wide, device=label.device)
    own_sum = own_sum.index_add(0, label, own_logit.to(wide))

    log_ratio = -math.log(num_classes) - log_pi
    log_weight = log_ratio[label] if variant == "paper" else torch.zeros_like(own_logit)
    log_weight = torch.where(counted, log_weight, torch.finfo(scores.dtype).min / 4)
    log_sum = torch.logsumexp(scores + log_weight[:, None], dim=0)
    if process_group is not None:
        top = largest(log_sum, process_group).clamp(min=torch.finfo(scores.dtype).min)
        parts = torch.stack([(log_sum - top).exp().to(wide), own_sum, per_class.to(wide)])
        scaled_sum, own_sum, counts = summed(parts, process_group).unbind()
        log_sum, per_class = top + scaled_sum.log().to(scores.dtype), counts.long()
    num_samples = per_class.sum()

    positive_mean = (own_sum / per_class.clamp(min=1)).to(scores.dtype)
    log_mean = log_sum - num_samples.clamp(min=1).to(scores.dtype).log()
    if variant == "released":
        log_mean = log_mean + log_ratio

    included = per_class > 0 if variant == "paper" else (num_samples > 0).expand_as(per_class)
    log_mean = torch.where(included, log_mean, 0)
    terms = -positive_mean + log_mean + lam * log_mean.square()
    return (log_pi.exp() * terms).sum(), num_samples


def lade_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    alpha: float,
    lam: float,
    variant: Variant = "paper",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""The LADE loss: cross-entropy of the source posterior plus $\alpha$ times the regulariser.

    $$\mathcal{L} = \frac1N \sum_i -\log \frac{\pi_{y_i} e^{f_{y_i}(x_i)}}{\sum_c \pi_c e^{f_c(x_i)}}
    + \alpha \, \mathcal{L}_{\text{LADER}}$$

    The logits come to carry the uniform prior: at test time use them plain on a uniform mix, else
    `adjust(logits, carried=uniform, target=target)`, which is Eq. 17. One $f$ minimises both parts of the
    paper's form, so that holds at every $\alpha, \lambda \ge 0$; the released form drifts from it as
    $\alpha\lambda$ grows. $\alpha = 0$ is Balanced Softmax.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        alpha: Weight $\alpha \ge 0$ of the regulariser. Table 7: 0.01 to 0.1 on CIFAR-100-LT, 0.005 on
            Places-LT, 0.05 on ImageNet-LT and iNaturalist 2018.
        lam: Weight $\lambda \ge 0$ of its squared term. Table 7: 0.01, 0.1, 0.5 and 0.5.
        variant: "paper" or "released", see `lader`.
        ignore_index: Positions with this label do not count.
        reduction: "mean"; "sum", the mean times the number of positions that count; or "none", the
            cross-entropy of each position plus $\alpha$ times the batch's regulariser, 0 where ignored.
        process_group: Ranks that the batch is spread over; None is this process alone. The regulariser is
            that of all ranks in every reduction; the sum over ranks of their "sum" is that of one process.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `alpha` or `lam` is negative, or an option is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> lade_loss(logits, labels, torch.tensor([0.9, 0.1]).log(), alpha=0.1, lam=0.1)
        tensor(0.2070)

    References:
        Hong et al., CVPR 2021, Definition 3.3, Eq. 18–20; test time Eq. 17; settings Table 7.
    """
    non_negative("alpha", alpha)
    one_of("reduction", reduction, REDUCTIONS)
    scores, indices, log_pi = _checked(logits, labels, log_prior, lam, variant)
    definition = partial(
        _lade,
        labels=indices,
        log_pi=log_pi,
        alpha=alpha,
        lam=lam,
        variant=variant,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )
    if reduction == "none":
        return definition(scores).view(labels.shape)
    if not kernels.support(scores, log_pi):
        return definition(scores)
    return kernels.lade(
        scores,
        indices,
        log_pi,
        weights=(1.0, alpha),
        lam=lam,
        released=variant == "released",
        ignore_index=ignore_index,
        total=reduction == "sum",
        process_group=process_group,
        definition=definition,
    )


def _lade(
    scores: Tensor,
    *,
    labels: Tensor,
    log_pi: Tensor,
    alpha: float,
    lam: float,
    variant: Variant,
    ignore_index: int,
    reduction: Reduction,
    process_group: ProcessGroup | None,
) -> Tensor:
    """The definition of `lade_loss` for one row a position."""
    scores = at_least_float32(scores)
    regulariser, num_samples = _lader(
        scores,
        labels=labels,
        log_pi=log_pi,
        lam=lam,
        variant=variant,
        ignore_index=ignore_index,
        process_group=process_group,
    )
    losses = negative_log_softmax(scores + log_pi, labels, ignore_index=ignore_index)
    if reduction == "mean":
        return mean_of(losses.sum(), num_samples, process_group) + alpha * regulariser
    counted = (labels.long() != ignore_index).to(losses.dtype)
    if reduction == "sum":
        return losses.sum() + alpha * regulariser * counted.sum()
    return losses + alpha * regulariser * counted


def _checked(
    logits: Tensor, labels: Tensor, log_prior: Tensor, lam: float, variant: Variant
) -> tuple[Tensor, Tensor, Tensor]:
    """One row of scores and one label for each position, and the log-prior where they are."""
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "lader")
    non_negative("lam", lam)
    one_of("variant", variant, VARIANTS)
    return *rows(logits, labels), like(log_prior, logits).flatten()


class LADELoss(nn.Module):
    r"""`lade_loss` that keeps the training prior; its logits carry the uniform prior.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        alpha: Weight $\alpha \ge 0$ of the regulariser; 0 is Balanced Softmax.
        lam: Weight $\lambda \ge 0$ of its squared term.
        variant: "paper" or "released", see `lader`. In the released form with $\alpha, \lambda > 0$ no prior
            is carried exactly; uniform is then a convention.
        ignore_index: As in `lade_loss`.
        reduction: As in `lade_loss`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> LADELoss([0.9, 0.1], alpha=0.1, lam=0.01).carried_prior
        Prior([0.5, 0.5])
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        alpha: float,
        lam: float,
        variant: Variant = "paper",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.alpha = non_negative("alpha", alpha)
        self.lam = non_negative("lam", lam)
        self.variant: Variant = one_of("variant", variant, VARIANTS)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The uniform prior."""
        return self.source.prior.tempered(0)

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        """By theory in the paper's form; the released one drifts once both of its parts are active."""
        exact = self.variant == "paper" or self.alpha == 0 or self.lam == 0
        return "theory" if exact else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `lade_loss`."""
        return lade_loss(
            logits,
            labels,
            self.source(logits),
            alpha=self.alpha,
            lam=self.lam,
            variant=self.variant,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )
