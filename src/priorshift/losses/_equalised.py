"""The equalised loss in its softmax form: rare classes are left out as rivals."""

import math
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
from priorshift.losses._settings import one_of, positive, share
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior


def equalised_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    threshold: float,
    drop_probability: float = 0.9,
    generator: torch.Generator | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Cross-entropy in which rare classes are at random left out of the denominator, except their own.

    $$\ell(x, y) = -\log \frac{e^{f_y(x)}}{\sum_c w_c e^{f_c(x)}}, \qquad
    w_c = 1 - \beta_c\, [\pi_c < \lambda]\, [c \ne y], \qquad \beta_c \sim \text{Bernoulli}(\gamma)$$

    with $\beta_c$ drawn anew for each sample and class. That spares rare classes most of the push that they
    get as rivals of frequent ones. $\gamma = 0$, or $\lambda$ below every $\pi_c$, is cross-entropy. At
    $\gamma = 1$ nothing is random, but the logit of a rare class only ever gains by growing: the population
    loss has no minimiser.

    It is not consistent for the balanced error, and the logits carry no prior; the authors use them plain on
    a uniform mix. Menon et al., Eq. 6, write a fixed $\Delta_{yy'} = \log F(\pi_{y'})$ in its place:
    `pairwise_margin_loss(negative=…)`, for $F = \pi$ `PairwiseMarginLoss(tau1=0)`.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        threshold: $\lambda > 0$; a class is rare if its share $\pi_c$ is smaller. It depends on the number of
            classes: 0.005 is half of a class's fair share among 100.
        drop_probability: $\gamma \in [0, 1]$.
        generator: Where the draws come from, on the device of the logits; None is torch's default, as for
            dropout. With $\gamma$ 0 or 1 nothing is drawn.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, a number is out of range or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> log_prior = torch.tensor([0.9, 0.1]).log()
        >>> equalised_loss(logits, labels, log_prior, threshold=0.2, drop_probability=1.0)
        tensor(0.0243)

    References:
        Tan et al., *Equalization Loss for Long-Tailed Object Recognition*, CVPR 2020, the softmax
        equalization loss for image classification.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "equalised_loss")
    positive("threshold", threshold)
    share("drop_probability", drop_probability)
    scores = at_least_float32(logits)
    rare = like(log_prior, scores) < math.log(threshold)
    if 0 < drop_probability < 1:
        draws = torch.rand(scores.shape, generator=generator, device=scores.device)
        dropped = rare & (draws < drop_probability)
    else:
        dropped = (rare & (drop_probability == 1)).expand_as(scores)
    label = torch.where(labels.long() != ignore_index, labels, 0).long()
    dropped = dropped.scatter(1, label.unsqueeze(1), False)
    losses = negative_log_softmax(scores.masked_fill(dropped, -torch.inf), labels, ignore_index=ignore_index)
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


class EqualisedLoss(nn.Module):
    r"""`equalised_loss` that keeps the training prior; its logits carry none, by convention the uniform one.

    It draws from torch's default generator, as dropout does: `torch.manual_seed` makes it reproducible.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        threshold: $\lambda > 0$; a class is rare if its share $\pi_c$ is smaller.
        drop_probability: $\gamma \in [0, 1]$; 0 is cross-entropy.
        ignore_index: As in `equalised_loss`.
        reduction: As in `equalised_loss`.

    Raises:
        ValueError: If `source` is zero for a class.

    Example:
        >>> loss = EqualisedLoss([0.9, 0.1], threshold=0.2)
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.5, 0.5]), 'convention')
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        threshold: float,
        drop_probability: float = 0.9,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.threshold = positive("threshold", threshold)
        self.drop_probability = share("drop_probability", drop_probability)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The uniform prior; the source prior where nothing is ever left out."""
        source = self.source.prior
        return source if self._is_cross_entropy() else source.tempered(0)

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        """By convention, unless nothing is ever left out."""
        return "theory" if self._is_cross_entropy() else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `equalised_loss`."""
        return equalised_loss(
            logits,
            labels,
            self.source(logits),
            threshold=self.threshold,
            drop_probability=self.drop_probability,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )

    def _is_cross_entropy(self) -> bool:
        return self.drop_probability == 0 or bool((self.source.prior.probs >= self.threshold).all())
