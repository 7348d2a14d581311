"""LDAM, the label-distribution-aware margin loss, and the re-weighting of its deferred stage."""

from typing import Literal

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
)
from priorshift.losses._class_balanced import log_class_balanced_weights, num_samples_of
from priorshift.losses._group import ProcessGroup
from priorshift.losses._pairwise_margin import pairwise_margin_loss
from priorshift.losses._settings import non_negative, one_of, positive, share
from priorshift.losses._source import SourcePrior
from priorshift.losses._weighted import NORMALIZATIONS, Normalization, reduce_weighted
from priorshift.priors import Prior


def ldam_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    reweight_beta: float = 0.0,
    num_samples: float | Tensor = 1.0,
    normalization: Normalization = "population",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Cross-entropy with a margin that is larger the rarer the label.

    $$\ell(x, y) = -\alpha_y \log
    \frac{e^{s (f_y(x) - \Delta_y)}}{e^{s (f_y(x) - \Delta_y)} + \sum_{c \ne y} e^{s f_c(x)}}, \qquad
    \Delta_y = m \frac{\pi_y^{-1/4}}{\max_c \pi_c^{-1/4}}$$

    The logits are meant to be cosines, in $[-1, 1]$, of a classifier whose features and weights are
    normalised; for unbounded logits set `scale=1`. $m = 0$ is cross-entropy on $s f$. With margin
    $\pi_y^{-1/4}$ and $s = 1$ it is the adaptive loss of Menon et al., Eq. 5: `pairwise_margin_loss`.

    It is not consistent for the balanced error where classes overlap, and the logits carry no prior. Its
    authors use the plain logits on a uniform mix. To move cosines to another mix, multiply them by the scale
    first: `adjust(scale * logits, carried=…, target=target)`.

    Deferred re-weighting (DRW) is two stages: this loss, then this loss with $\alpha$ of
    `class_balanced_weights` at $\beta$ = `reweight_beta`. Cao et al. train 160 epochs with 0, then 40 with
    0.9999.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        max_margin: Margin $m \ge 0$ of the rarest class.
        scale: Factor $s > 0$ on the logits.
        reweight_beta: $\beta \in [0, 1]$ of the class weights; 0 gives weights of 1.
        num_samples: Number of training samples, which the weights depend on.
        normalization: "population" normalises the weights once, to $\sum_c \pi_c \alpha_c = 1$, and divides
            by the number of samples; "batch" divides by the batch's sum of weights, as the authors do. It
            changes "mean" only.
        ignore_index: Positions with this label do not count.
        reduction: "mean", "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, a number is out of range, or an option is unknown.

    Example:
        >>> import torch
        >>> cosines, labels = torch.tensor([[0.6, 0.3], [0.1, 0.4]]), torch.tensor([0, 1])
        >>> ldam_loss(cosines, labels, torch.tensor([0.9, 0.1]).log())
        tensor(3.2701)

    References:
        Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019,
        Section 3.2 and Algorithm 1; settings from their released code.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "ldam_loss")
    non_negative("max_margin", max_margin)
    positive("scale", scale)
    one_of("normalization", normalization, NORMALIZATIONS)
    log_weights = log_class_balanced_weights(log_prior, num_samples, reweight_beta)
    weights = (log_weights - torch.logsumexp(log_prior + log_weights, dim=0)).exp()
    losses = pairwise_margin_loss(
        scale * at_least_float32(logits),
        labels,
        weights=weights,
        positive=scale * max_margin * ((log_prior.min() - log_prior) / 4).exp(),
        ignore_index=ignore_index,
        reduction="none",
    )
    return reduce_weighted(
        losses,
        at_labels(weights.to(losses.dtype), labels, ignore_index),
        labels,
        normalization=normalization,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )


class LDAMLoss(nn.Module):
    r"""`ldam_loss` that keeps the training prior; its logits carry none, by convention the uniform one.

    The two stages of LDAM-DRW in a config, where the optimizer goes on:

        Stage(loss=Part(name="ldam"), epochs=160, optimizer=…)
        Stage(loss=Part(name="ldam", options={"reweight_beta": 0.9999}), epochs=40, optimizer=None)

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        max_margin: Margin $m \ge 0$ of the rarest class; 0 is weighted cross-entropy on $s f$.
        scale: Factor $s > 0$ on the logits: 30 for cosines, 1 for unbounded logits.
        reweight_beta: $\beta \in [0, 1]$ of the class weights; 0 gives weights of 1.
        num_samples: Number of training samples; None takes it from the counts of `source`, which are needed
            only where $0 < \beta < 1$.
        normalization: As in `ldam_loss`.
        ignore_index: As in `ldam_loss`.
        reduction: As in `ldam_loss`.

    Raises:
        ValueError: If `source` is zero for a class, or the number of samples is needed and not known.

    Example:
        >>> loss = LDAMLoss([0.9, 0.1])
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.5, 0.5]), 'convention')
    """

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_beta: float = 0.0,
        num_samples: float | None = None,
        normalization: Normalization = "population",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        self.max_margin = non_negative("max_margin", max_margin)
        self.scale = positive("scale", scale)
        self.reweight_beta = share("reweight_beta", reweight_beta)
        self.num_samples = num_samples
        self.normalization: Normalization = one_of("normalization", normalization, NORMALIZATIONS)
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)
        self._num_samples()

    @property
    def carried_prior(self) -> Prior:
        r"""The uniform prior; at margin 0 and scale 1 that of weighted cross-entropy, $\propto \pi\alpha$."""
        prior = self.source.prior
        if not self._is_cross_entropy:
            return prior.tempered(0)
        log_prior = torch.tensor(prior.log_probs)
        log_weights = log_class_balanced_weights(log_prior, self._num_samples(), self.reweight_beta)
        return Prior.from_log_probs(log_prior + log_weights, names=prior.names)

    @property
    def carried_by(self) -> Literal["theory", "convention"]:
        """By convention; by theory where it is weighted cross-entropy, normalised by the population."""
        exact = self.reweight_beta == 0 or self.normalization == "population"
        return "theory" if self._is_cross_entropy and exact else "convention"

    @property
    def _is_cross_entropy(self) -> bool:
        return self.max_margin == 0 and self.scale == 1

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `ldam_loss`."""
        return ldam_loss(
            logits,
            labels,
            self.source(logits),
            max_margin=self.max_margin,
            scale=self.scale,
            reweight_beta=self.reweight_beta,
            num_samples=self._num_samples(),
            normalization=self.normalization,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )

    def _num_samples(self) -> float:
        if self.reweight_beta in (0, 1) and self.num_samples is None:
            return 1.0
        return num_samples_of(self.source.prior, self.num_samples)
