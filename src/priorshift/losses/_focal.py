"""Focal loss in its softmax form."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.losses._batch import REDUCTIONS, Reduction, at_least_float32, check_hard, check_shapes, reduce
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import non_negative, one_of
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior


def focal_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    *,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Cross-entropy in which well classified samples count less.

    $$\ell(x, y) = -(1 - p_y)^\gamma \log p_y, \qquad p = \operatorname{softmax} f(x)$$

    $\gamma = 0$ is cross-entropy. It re-weights samples, not classes: the argmax of its minimiser is that of
    the source posterior, so it is not consistent for the balanced error. For $\gamma > 0$ the logits are
    flatter than $\log p_s(y \mid x)$ between probable classes and slightly steeper among improbable ones
    (below about 0.1 at $\gamma = 2$), so they carry no prior; `adjust` from the source prior, as after
    cross-entropy, is a convention. Lin et al. write it with a sigmoid; this is the softmax form of the
    long-tail papers, and `class_balanced_focal_loss` has the sigmoids.

    $p_y$ and $1 - p_y$ both come from the log-odds of the label, so that value and gradient keep their
    precision as $p_y \to 1$, also for $0 < \gamma < 1$ where $(1 - p)^\gamma$ has no derivative.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        gamma: Strength $\gamma \ge 0$.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `gamma` is negative or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> focal_loss(logits, labels, gamma=2.0)
        tensor(0.0114)

    References:
        Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, Eq. 4.
    """
    check_shapes(logits, labels, None)
    check_hard(labels, "focal_loss")
    non_negative("gamma", gamma)
    scores = at_least_float32(logits)
    counted = labels.long() != ignore_index
    label = torch.where(counted, labels, 0).long().unsqueeze(1)
    rivals = scores.scatter(1, label, -torch.inf).logsumexp(1)
    losses = focal_of_log_odds(scores.gather(1, label).squeeze(1) - rivals, gamma)
    return reduce(
        torch.where(counted, losses, 0),
        labels,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )


class FocalLoss(nn.Module):
    r"""`focal_loss` that keeps the training prior, which its logits carry by convention.

    Args:
        source: Class prior of the stream that the loss sees, `[C]`, strictly positive.
        gamma: Strength $\gamma \ge 0$; 0 is cross-entropy.
        ignore_index: As in `focal_loss`.
        reduction: As in `focal_loss`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> loss = FocalLoss([0.9, 0.1])
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.9, 0.1]), 'convention')
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.gamma = non_negative("gamma", gamma)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The source prior."""
        return self.source.prior

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        r"""By theory at $\gamma = 0$, which is cross-entropy; else by convention."""
        return "theory" if self.gamma == 0 else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `focal_loss`."""
        return focal_loss(
            logits,
            labels,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )


def focal_of_log_odds(log_odds: Tensor, gamma: float) -> Tensor:
    r"""$-(1 - p)^\gamma \log p$ of $p = \sigma(\text{log-odds})$."""
    return -torch.exp(gamma * F.logsigmoid(-log_odds)) * F.logsigmoid(log_odds)
