"""Cross-entropy with class weights, the classic balanced loss."""

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.losses._batch import (
    REDUCTIONS,
    Reduction,
    at_labels,
    at_least_float32,
    check_hard,
    check_shapes,
    like,
    mean_of,
    negative_log_softmax,
    reduce,
)
from priorshift.losses._group import ProcessGroup, summed
from priorshift.losses._settings import one_of
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior, as_prior

Normalization: TypeAlias = Literal["population", "batch"]
NORMALIZATIONS = get_args(Normalization)


def weighted_cross_entropy(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    weights: Float[Tensor, " classes"] | None = None,
    normalization: Normalization = "population",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Cross-entropy with a weight for each class.

    $$\ell(x, y) = -\frac{\alpha_y}{\sum_c \pi_c \alpha_c} \log \frac{e^{f_y(x)}}{\sum_c e^{f_c(x)}}$$

    With the default weights $1/\pi_y$ it is the balanced loss. The logits come to carry the prior
    $\propto \pi \alpha$, so the balanced loss needs no adjustment for a uniform mix. Weights have little
    effect on a network that separates its training data (Byrd & Lipton, 2019).

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        weights: Positive class weights $\alpha$, `[C]`, of any scale; None means $1/\pi$.
        normalization: "population" normalises the weights once, to $\sum_c \pi_c \alpha_c = 1$, and divides
            by the number of samples. "batch" divides by the batch's sum of weights, as
            `torch.nn.functional.cross_entropy(weight=…)` does: that makes the step depend on who happens to
            be in the batch and biases what is carried, more so the smaller the batch. It changes "mean" only.
        ignore_index: Positions with this label do not count.
        reduction: "mean", "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, or `normalization` or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> weighted_cross_entropy(logits, labels, torch.tensor([0.9, 0.1]).log())
        tensor(0.2085)

    References:
        Menon et al., ICLR 2021, Eq. 4; the carried prior follows from the proof of Theorem 1.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "weighted_cross_entropy")
    one_of("normalization", normalization, NORMALIZATIONS)
    scores = at_least_float32(logits)
    log_prior = at_least_float32(log_prior)
    log_weights = -log_prior if weights is None else at_least_float32(weights).log()
    if log_weights.shape != log_prior.shape:
        raise ValueError(
            f"Expected `weights` with one entry per class, {tuple(log_prior.shape)}, "
            f"but got shape {tuple(log_weights.shape)}."
        )
    log_weights = log_weights - torch.logsumexp(log_prior.to(log_weights.device) + log_weights, dim=0)
    per_class = like(log_weights, scores).flatten().exp()
    per_position = at_labels(per_class, labels, ignore_index)
    losses = per_position * negative_log_softmax(scores, labels, ignore_index=ignore_index)
    return reduce_weighted(
        losses,
        per_position,
        labels,
        normalization=normalization,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )


def reduce_weighted(
    losses: Tensor,
    per_position: Tensor,
    labels: Tensor,
    *,
    normalization: Normalization,
    ignore_index: int,
    reduction: Reduction,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Reduce losses that already hold their weights; "batch" divides their sum by that of the weights."""
    if normalization == "batch" and reduction == "mean":
        return mean_of(losses.sum(), summed(per_position.sum(), process_group), process_group)
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


class WeightedCrossEntropyLoss(nn.Module):
    r"""`weighted_cross_entropy` that keeps prior and weights; its logits carry the prior $\propto \pi\alpha$.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        weights: Positive class weights $\alpha$, `[C]`, of any scale; None means $1/\pi$.
        normalization: As in `weighted_cross_entropy`; with "batch" the carried prior is only a convention.
        ignore_index: As in `weighted_cross_entropy`.
        reduction: As in `weighted_cross_entropy`.

    Raises:
        ValueError: If `source` or `weights` is not strictly positive, or their lengths differ.

    Example:
        >>> WeightedCrossEntropyLoss([0.8, 0.2], weights=[1.0, 2.0]).carried_prior
        Prior([0.6667, 0.3333])
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        weights: ArrayLike | None = None,
        normalization: Normalization = "population",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        pi = self.source.prior
        if weights is None:
            carried = Prior.uniform(pi.num_classes, names=pi.names)
        else:
            alpha = as_prior(weights, "weights", pi.num_classes, names=pi.names).require_positive("weights")
            carried = Prior.from_log_probs(pi.log_probs + alpha.log_probs, names=pi.names)
        self.carried = SourcePrior(carried)
        self.normalization: Normalization = one_of("normalization", normalization, NORMALIZATIONS)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        r"""The prior $\propto \pi\alpha$."""
        return self.carried.prior

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        """By theory, unless the weights are normalised by the batch."""
        return "theory" if self.normalization == "population" else "convention"

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `weighted_cross_entropy`."""
        log_prior = self.source(logits)
        return weighted_cross_entropy(
            logits,
            labels,
            log_prior,
            weights=(self.carried(logits) - log_prior).exp(),
            normalization=self.normalization,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )
