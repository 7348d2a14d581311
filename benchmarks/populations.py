"""Exact populations over a table of points, and scorers fitted to them to optimality.

A population is a table of whole counts, so that it can be handed to any loss as one finite batch whose
empirical frequencies *are* the population's probabilities: no sample weights and no sampling noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from priorshift.priors import Prior

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Population:
    """A joint distribution $p(x, y) = n_{xy} / N$ over a few points $x$ and classes $y$.

    Args:
        counts: Whole numbers $n_{xy} > 0$, `[K, C]`. Positive, so that every optimal logit is finite.
    """

    counts: Int[Tensor, "points classes"]

    @property
    def prior(self) -> Prior:
        """The class prior of the population."""
        return Prior.from_counts(self.counts.sum(0))

    @cached_property
    def points(self) -> Int[Tensor, " batch"]:
        """The point of each of the $N$ samples."""
        num_points, num_classes = self.counts.shape
        return (
            torch.arange(num_points).repeat_interleave(num_classes).repeat_interleave(self.counts.flatten())
        )

    @cached_property
    def labels(self) -> Int[Tensor, " batch"]:
        """The class of each of the $N$ samples."""
        num_points, num_classes = self.counts.shape
        return torch.arange(num_classes).repeat(num_points).repeat_interleave(self.counts.flatten())

    @property
    def likelihood(self) -> Float[Tensor, "points classes"]:
        r"""$p(x \mid y)$, the same under every prior."""
        return self.counts.double() / self.counts.sum(0)

    def posterior(self, prior: Prior) -> Float[Tensor, "points classes"]:
        r"""$p(y \mid x)$ when the classes have this prior."""
        joint = self.likelihood * torch.tensor(prior.probs)
        return joint / joint.sum(1, keepdim=True)

    @property
    def source_posterior(self) -> Float[Tensor, "points classes"]:
        r"""$p_s(y \mid x)$, under the population's own prior."""
        return self.posterior(self.prior)

    @property
    def uniform_posterior(self) -> Float[Tensor, "points classes"]:
        r"""$p_u(y \mid x)$, under the uniform prior."""
        return self.posterior(Prior.uniform(self.counts.shape[1]))

    def balanced_accuracy(self, logits: Float[Tensor, "points classes"]) -> float:
        """Mean over classes of the accuracy of the argmax of a table of logits."""
        chosen = self.likelihood.gather(1, logits.argmax(1, keepdim=True))
        return float(chosen.sum() / self.counts.shape[1])

    @property
    def best_balanced_accuracy(self) -> float:
        """The Bayes accuracy of the balanced error."""
        return float(self.likelihood.max(1).values.sum() / self.counts.shape[1])

    def divergence_from_uniform(self, logits: Float[Tensor, "points classes"]) -> float:
        r"""$\mathbb{E}_{p_u(x)} \mathrm{KL}(p_u(y \mid x) \,\|\, \mathrm{softmax} f(x))$, in nats."""
        joint = self.likelihood / self.counts.shape[1]
        return float((joint * (self.uniform_posterior.log() - logits.log_softmax(1))).sum())

    def loss(self, loss: Loss, table: Float[Tensor, "points classes"]) -> Float[Tensor, ""]:
        """A loss of `(logits, labels, log_prior)` over the whole population, the logits read from a table."""
        return loss(table[self.points], self.labels, torch.tensor(self.prior.log_probs))

    def fit(
        self, loss: Loss, start: Float[Tensor, "points classes"] | None = None
    ) -> Float[Tensor, "points classes"]:
        """The table of logits that minimises a loss over the population; see `minimise`."""
        start = torch.zeros(self.counts.shape, dtype=torch.float64) if start is None else start
        return minimise(lambda table: self.loss(loss, table), start)


def random_population(
    seed: int,
    *,
    num_classes: int = 4,
    num_points: int = 12,
    size: int = 2000,
    imbalance: float = 50.0,
    spread: float = 1.0,
) -> Population:
    r"""A population of overlapping classes whose prior decays exponentially from class to class.

    Args:
        seed: Of the random class-conditional distributions.
        num_classes: Number of classes $C$.
        num_points: Number of points $K$.
        size: Number of samples $N$, up to rounding to whole counts of at least 1.
        imbalance: Ratio of the largest to the smallest class.
        spread: Standard deviation of $\log p(x \mid y)$: the larger, the less the classes overlap.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_points, num_classes, generator=generator, dtype=torch.float64)
    prior = Prior(imbalance ** -torch.linspace(0, 1, num_classes, dtype=torch.float64))
    joint = (spread * scores).softmax(0) * torch.tensor(prior.probs)
    return Population((size * joint).round().clamp(min=1).to(torch.int64))


def minimise(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 200,
) -> Tensor:
    """Minimise a smooth function of a small tensor by Newton's method, until its gradient vanishes.

    A direction of negative curvature is descended by its absolute value, and a flat one (softmax does not
    see a constant per row) is left alone, so no convexity is needed. The Hessian is kept for as long as its
    steps shrink the gradient fivefold.

    Raises:
        RuntimeError: If the gradient's largest entry is above `tolerance` after `max_steps`.
    """
    point, size, inverse = start.detach().clone(), math.inf, torch.empty(0)
    for _ in range(max_steps):
        point.requires_grad_(True)
        value = objective(point)
        (gradient,) = torch.autograd.grad(value, point)
        point, previous, size = point.detach(), size, float(gradient.abs().max())
        if size <= tolerance:
            return point
        if inverse.numel() == 0 or size > previous / 5:
            inverse = _inverse(hessian(objective, point))
        step = (inverse @ gradient.flatten()).view(point.shape)
        step = step / max(1.0, float(step.abs().max()) / 3)
        with torch.no_grad():
            decrease = (gradient * step).sum()
            bound = value + 1e-12 * (1 + value.abs())
            length = 1.0
            while length > 1e-6 and objective(point - length * step) > bound - 1e-4 * length * decrease:
                length /= 2
        point = point - length * step
    raise RuntimeError(f"No minimum in {max_steps} steps: the gradient is {size:.1e}.")


def hessian(objective: Callable[[Tensor], Tensor], point: Tensor) -> Float[Tensor, "size size"]:
    """Second derivatives of a scalar function by the entries of its argument, as one matrix."""
    blocks: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        objective, point, vectorize=True
    )
    return blocks.reshape(point.numel(), point.numel())


def _inverse(matrix: Float[Tensor, "size size"]) -> Float[Tensor, "size size"]:
    curvatures, directions = torch.linalg.eigh(matrix)
    sizes = curvatures.abs()
    inverses = torch.where(sizes > 1e-11 * sizes.max(), 1 / sizes, 0)
    inverse: Tensor = (directions * inverses) @ directions.T
    return inverse
