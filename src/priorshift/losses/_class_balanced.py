"""The class-balanced losses: weights by the effective number of samples."""

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
from priorshift.losses._focal import focal_of_log_odds
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import non_negative, one_of, positive, share
from priorshift.losses._source import SourcePrior
from priorshift.priors import Prior


def class_balanced_weights(counts: ArrayLike, beta: float) -> Float[Tensor, " classes"]:
    r"""Class weights by the inverse effective number of samples, of mean 1.

    $$\alpha_y \propto \frac{1 - \beta}{1 - \beta^{n_y}}, \qquad \sum_c \alpha_c = C$$

    $\beta = 0$ gives weights of 1 and $\beta = 1$, the limit, $\alpha \propto 1/n$. In between, classes of
    far fewer than $1/(1-\beta)$ samples are weighted by $1/n$ and those of far more all alike.

    Args:
        counts: Number of training samples $n_y$ of each class, `[C]`, positive whole numbers.
        beta: $\beta \in [0, 1]$.

    Returns:
        The weights, float64.

    Raises:
        ValueError: If a class has no sample or `beta` is out of range.

    Example:
        >>> class_balanced_weights([500, 50, 5], beta=0.99)
        tensor([0.1261, 0.3172, 2.5566], dtype=torch.float64)

    References:
        Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019, Section 4.
    """
    tallies = Prior.from_counts(counts)
    return log_class_balanced_weights(
        torch.tensor(tallies.log_probs), num_samples_of(tallies, None), beta
    ).exp()


def class_balanced_cross_entropy(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    num_samples: float | Tensor,
    beta: float = 0.9999,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Softmax cross-entropy weighted by the inverse effective number of samples.

    $$\ell(x, y) = -\alpha_y \log \frac{e^{f_y(x)}}{\sum_c e^{f_c(x)}}, \qquad
    \alpha_y \propto \frac{1 - \beta}{1 - \beta^{n_y}}, \quad n_y = N \pi_y, \quad \sum_c \alpha_c = C$$

    The logits come to carry the prior $\propto \pi \alpha$: the source prior at $\beta = 0$, which is
    cross-entropy, the uniform one at $\beta = 1$, and something between else. Cui et al. deploy the plain
    logits; `adjust` from the carried prior makes them exact.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        num_samples: Number $N$ of training samples.
        beta: $\beta \in [0, 1]$. Cui et al. choose it for each dataset among 0.9, 0.99, 0.999 and 0.9999.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `beta` is out of range or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> log_prior = torch.tensor([0.9, 0.1]).log()
        >>> class_balanced_cross_entropy(logits, labels, log_prior, num_samples=1000)
        tensor(0.0760)

    References:
        Cui et al., CVPR 2019, Section 4.1.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "class_balanced_cross_entropy")
    scores = at_least_float32(logits)
    weights = like(log_class_balanced_weights(log_prior, num_samples, beta), scores).flatten().exp()
    counted = labels.long() != ignore_index
    per_position = weights[torch.where(counted, labels, 0).long()]
    losses = per_position * negative_log_softmax(scores, labels, ignore_index=ignore_index)
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


class ClassBalancedLoss(nn.Module):
    r"""`class_balanced_cross_entropy` that keeps the training prior; its logits carry $\propto \pi\alpha$.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        beta: $\beta \in [0, 1]$; 0 is cross-entropy.
        num_samples: Number $N$ of training samples; None takes it from the counts of `source`.
        ignore_index: As in `class_balanced_cross_entropy`.
        reduction: As in `class_balanced_cross_entropy`.

    Raises:
        ValueError: If `source` is zero for a class, or has no counts and `num_samples` is None.

    Example:
        >>> ClassBalancedLoss(Prior.from_counts([900, 100]), beta=0.99).carried_prior
        Prior([0.8509, 0.1491])
    """

    carried_by: Literal["theory"] = "theory"

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        beta: float = 0.9999,
        num_samples: float | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        num_samples_of(self.source.prior, num_samples)
        self.beta = share("beta", beta)
        self.num_samples = num_samples
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        r"""The prior $\propto \pi\alpha$."""
        source = self.source.prior
        log_prior = torch.tensor(source.log_probs)
        log_weights = log_class_balanced_weights(
            log_prior, num_samples_of(source, self.num_samples), self.beta
        )
        return Prior(torch.softmax(log_prior + log_weights, dim=0), names=source.names)

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `class_balanced_cross_entropy`."""
        return class_balanced_cross_entropy(
            logits,
            labels,
            self.source(logits),
            num_samples=num_samples_of(self.source.prior, self.num_samples),
            beta=self.beta,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )


def class_balanced_focal_loss(
    logits: Float[Tensor, "batch classes *positions"],
    labels: Integer[Tensor, "batch *positions"],
    log_prior: Float[Tensor, " classes"],
    *,
    num_samples: float | Tensor,
    beta: float = 0.9999,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""Sigmoid focal loss over all classes, weighted by the inverse effective number of samples.

    $$\ell(x, y) = -\alpha_y \sum_c (1 - p_c)^\gamma \log p_c, \qquad
    p_c = \sigma\big(f_c(x)\big) \text{ if } c = y, \text{ else } \sigma\big({-f_c(x)}\big)$$

    with $\alpha$ of `class_balanced_weights` at $n_y = N \pi_y$. This is the focal loss of Cui et al., one
    binary problem for each class, not the softmax form of `focal_loss`. They start the bias of the last layer
    at $-\log(C - 1)$ and exempt it from weight decay.

    Each logit is a monotone function of $p(c \mid x)$ under the prior $\propto \pi \alpha$, the same for all
    classes: the plain argmax is right for that mix, which at $\beta = 1$ is the uniform one. Its authors use
    it on a uniform mix at every $\beta$. The logits are those of one class against the rest and carry no
    prior, so moving them to another mix is a convention.

    Args:
        logits: Scores $f(x)$, `[N, C]` or `[N, C, …]`.
        labels: Class indices, `[N]` or `[N, …]`.
        log_prior: $\log \pi$ of the training stream, `[C]`.
        num_samples: Number $N$ of training samples.
        beta: $\beta \in [0, 1]$. Cui et al. choose it for each dataset among 0.9, 0.99, 0.999 and 0.9999.
        gamma: Strength $\gamma \ge 0$, chosen by them among 0.5, 1 and 2; 0 is sigmoid cross-entropy.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If the dtypes of `logits` or `labels` do not fit.
        ValueError: If a shape does not fit, `beta` or `gamma` is out of range, or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> log_prior = torch.tensor([0.9, 0.1]).log()
        >>> class_balanced_focal_loss(logits, labels, log_prior, num_samples=1000)
        tensor(0.2283)

    References:
        Cui et al., CVPR 2019, Section 4.3.
    """
    check_shapes(logits, labels, log_prior)
    check_hard(labels, "class_balanced_focal_loss")
    non_negative("gamma", gamma)
    scores = at_least_float32(logits)
    weights = like(log_class_balanced_weights(log_prior, num_samples, beta), scores).flatten().exp()
    counted = labels.long() != ignore_index
    label = torch.where(counted, labels, 0).long()
    log_odds = (-scores).scatter(1, label.unsqueeze(1), scores.gather(1, label.unsqueeze(1)))
    losses = weights[label] * focal_of_log_odds(log_odds, gamma).sum(1)
    return reduce(
        torch.where(counted, losses, 0),
        labels,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )


class ClassBalancedFocalLoss(nn.Module):
    r"""`class_balanced_focal_loss` that keeps the training prior; it carries none, by convention uniform.

    Args:
        source: Class prior $\pi$ of the stream that the loss sees, `[C]`, strictly positive.
        beta: $\beta \in [0, 1]$; 0 is the sigmoid focal loss.
        gamma: Strength $\gamma \ge 0$.
        num_samples: Number $N$ of training samples; None takes it from the counts of `source`.
        ignore_index: As in `class_balanced_focal_loss`.
        reduction: As in `class_balanced_focal_loss`.

    Raises:
        ValueError: If `source` is zero for a class, or has no counts and `num_samples` is None.

    Example:
        >>> loss = ClassBalancedFocalLoss(Prior.from_counts([900, 100]))
        >>> loss.carried_prior, loss.carried_by
        (Prior([0.5, 0.5]), 'convention')
    """

    carried_by: Literal["convention"] = "convention"

    def __init__(
        self,
        source: Prior | ArrayLike,
        *,
        beta: float = 0.9999,
        gamma: float = 2.0,
        num_samples: float | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.source = SourcePrior(source)
        num_samples_of(self.source.prior, num_samples)
        self.beta = share("beta", beta)
        self.gamma = non_negative("gamma", gamma)
        self.num_samples = num_samples
        self.ignore_index = ignore_index
        self.reduction: Reduction = one_of("reduction", reduction, REDUCTIONS)

    @property
    def carried_prior(self) -> Prior:
        """The uniform prior."""
        return self.source.prior.tempered(0)

    def forward(self, logits: Tensor, labels: Tensor, *, process_group: ProcessGroup | None = None) -> Tensor:
        """The loss of a batch; shapes as in `class_balanced_focal_loss`."""
        return class_balanced_focal_loss(
            logits,
            labels,
            self.source(logits),
            num_samples=num_samples_of(self.source.prior, self.num_samples),
            beta=self.beta,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            process_group=process_group,
        )


def log_class_balanced_weights(
    log_prior: Float[Tensor, " classes"], num_samples: float | Tensor, beta: float
) -> Float[Tensor, " classes"]:
    r"""The logarithm of `class_balanced_weights` at $n_y = N \pi_y$, at least in float32.

    Raises:
        ValueError: If `beta` lies outside $[0, 1]$.
    """
    share("beta", beta)
    log_prior = at_least_float32(log_prior)
    if beta == 0:
        return torch.zeros_like(log_prior)
    counts = log_prior.exp() * num_samples
    # 1/(1 - β^n) as 1/n times x/(1 - e^-x): exact for β near 1, and 1/n at β = 1 where x is 0.
    x = (-math.log(beta) * counts).clamp(min=torch.finfo(counts.dtype).tiny)
    log_weights = -log_prior - (-torch.expm1(-x) / x).log()
    return log_weights - log_weights.logsumexp(0) + math.log(len(log_weights))


def num_samples_of(source: Prior, given: float | None) -> float:
    """The number of training samples: as given, else from the counts of the source.

    Raises:
        ValueError: If neither is known, or the given number is not positive.
    """
    if given is None:
        if source.counts is None:
            raise ValueError(
                "Expected `source` with counts, as `Prior.from_counts` gives it, or `num_samples`, "
                "but got a prior without counts and None."
            )
        return int(source.counts.sum())
    return positive("num_samples", given)
