"""The causal-norm classifier: normalised in parts, minus the effect of the mean direction at test time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.adjustment import best_tau
from priorshift.models.heads._start import Start
from priorshift.priors import Prior

ALPHAS = tuple(step / 4 for step in range(13))
"""The strengths that are tried where none is given."""


class CausalNormHead(nn.Module):
    r"""Causal Norm: a multi-head normalised classifier, and the total direct effect (TDE) in evaluation mode.

    Features and weights are cut into $K$ equal parts, the heads $x^k$ and $w^k$. In training

    $$f_y(x) = \frac{\tau}{K} \sum_{k=1}^K
    \frac{{w_y^k}^\top x^k}{(\|w_y^k\| + \gamma)\, \|x^k\|}, \qquad
    \bar x \leftarrow \mu \bar x + \tfrac1N \textstyle\sum_i x_i,$$

    and in evaluation mode, with the direction $\hat d^k = \bar x^k / \|\bar x^k\|$ that the features had on
    average over the training,

    $$f_y(x) = \frac{\tau}{K} \sum_{k=1}^K \frac{{w_y^k}^\top}{\|w_y^k\| + \gamma}
    \left( \frac{x^k}{\|x^k\|} - \alpha \cos(x^k, \hat d^k)\, \hat d^k \right).$$

    For cross-entropy on images as they come, in one stage. α = 0 subtracts nothing. It plays no part in the
    training: a second stage of 0 epochs with the same head takes the weights over and chooses it. At test
    time use the logits as they are on the uniform mix; no theory says what they carry.

    Args:
        num_features: Number of features $D$, a multiple of `num_heads`.
        num_classes: Number of classes $C$.
        num_heads: Number of parts $K$.
        scale: Factor $\tau > 0$.
        gamma: Addend $\gamma \ge 0$ to the norms of the weights.
        alpha: Strength $\alpha \ge 0$ of the subtraction. The released settings are 1 for CIFAR-10, 1.5 for
            CIFAR-100, 3 for ImageNet-LT and Places-LT. None subtracts nothing in the first stage; in a later
            one it tries 0, 0.25, …, 3 and takes what has the best balanced accuracy on the validation
            images, the smallest of equals; `chosen` has it.
        momentum: Decay $\mu$ of the moving average, in [0, 1): that of the optimizer.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> head = CausalNormHead(2, 2, num_heads=1, scale=1.0, gamma=0.0, alpha=1.0)
        >>> _ = head.moving_average.copy_(torch.tensor([0.0, 5.0]))
        >>> _ = nn.init.eye_(head.weight)
        >>> head.eval()(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[0.6000, 0.0000]])

    References:
        Tang et al., *Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal
        Effect*, NeurIPS 2020, Section 4.
    """

    moving_average: Tensor
    strength: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        num_heads: int = 2,
        scale: float = 16.0,
        gamma: float = 1 / 32,
        alpha: float | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if num_heads < 1 or num_features % num_heads:
            raise ValueError(
                f"Expected `num_heads` to divide the {num_features} features, but got {num_heads}."
            )
        for name, value, rule, holds in (
            ("scale", scale, "positive", scale > 0),
            ("gamma", gamma, "non-negative", gamma >= 0),
            ("alpha", alpha, "non-negative", alpha is None or alpha >= 0),
            ("momentum", momentum, "in [0, 1)", 0 <= momentum < 1),
        ):
            if not holds:
                raise ValueError(f"Expected `{name}` to be {rule}, but got {value}.")
        self.num_heads, self.scale, self.gamma = num_heads, scale, gamma
        self.alpha, self.momentum = alpha, momentum
        self.chosen: dict[str, float] = {}
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.register_buffer("moving_average", torch.zeros(num_features))
        self.register_buffer("strength", torch.tensor(float(alpha or 0.0)))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its authors use its logits on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Take over the weights of the same head, and choose α on the validation images where none is given.

        Raises:
            ValueError: If the head before is another, or there are no validation images to choose on.
        """
        if not isinstance(start.previous, CausalNormHead):
            raise ValueError(
                "Expected the head before this one to be `causal-norm`, whose weights it takes over, "
                f"but got {type(start.previous).__name__}."
            )
        for name in ("num_heads", "scale", "gamma"):
            mine, theirs = getattr(self, name), getattr(start.previous, name)
            if mine != theirs:
                raise ValueError(
                    f"Expected `{name}` to be that of the head before, {theirs}, but got {mine}."
                )
        given = self.strength.clone()
        self.load_state_dict(start.previous.state_dict())
        self.strength.copy_(given)
        if self.alpha is None:
            features = start.validation.features.to(self.weight.device)
            labels = start.validation.labels.to(self.weight.device)
            alpha = best_tau(
                lambda alpha: self._classify(self._without_average(features, alpha)), labels, ALPHAS
            )
            self.chosen = {"alpha": alpha}
            self.strength.fill_(alpha)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features; in training mode the batch moves the average."""
        if not self.training:
            return self._classify(self._without_average(features, self.strength))
        self.moving_average.mul_(self.momentum).add_(features.detach().mean(dim=0))
        return self._classify(F.normalize(self._parts(features), dim=-1))

    def _without_average(self, features: Tensor, alpha: float | Tensor) -> Tensor:
        """Directions of the features less α times their part along the average direction."""
        directions = F.normalize(self._parts(features), dim=-1)
        average = F.normalize(self._parts(self.moving_average), dim=-1)
        cosines = (directions * average).sum(dim=-1, keepdim=True)
        return directions - alpha * cosines * average

    def _classify(self, directions: Tensor) -> Tensor:
        weight = self._parts(self.weight)
        weight = weight / (weight.norm(dim=-1, keepdim=True) + self.gamma)
        return F.linear(self.scale / self.num_heads * directions.flatten(-2), weight.flatten(-2))

    def _parts(self, vectors: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows heads part"]:
        return vectors.reshape(*vectors.shape[:-1], self.num_heads, -1)
