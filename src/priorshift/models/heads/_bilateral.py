"""BBN's classifier: one linear classifier on two branches, mixed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.priors import Prior


class BilateralHead(nn.Module):
    r"""BBN: the logits of the conventional and the re-balancing branch, mixed.

    $$f(x) = 2 \left( \alpha W_c f_c + (1 - \alpha) W_r f_r \right) + b$$

    For a stage with `bilateral=True`, which moves α from 1 to 0. At test time α = 1/2, and the head is the
    ordinary linear classifier of both branches' features; use its logits as they are on the uniform mix, as
    no theory says what they carry.

    The factor 2 and the bias are those of the released code; the paper's Eq. 1 has neither.

    Args:
        num_features: Number of features of both branches together, even.
        num_classes: Number of classes $C$.

    Raises:
        ValueError: If `num_features` is odd.

    Example:
        >>> head = BilateralHead(2, 1)
        >>> _ = head.load_state_dict(
        ...     {"linear.weight": torch.tensor([[3.0, 5.0]]), "linear.bias": torch.tensor([1.0])}
        ... )
        >>> [head(torch.ones(1, 2), alpha=alpha).item() for alpha in (1.0, 0.5, 0.0)]
        [7.0, 9.0, 11.0]

    References:
        Zhou et al., *BBN: Bilateral-Branch Network with Cumulative Learning*, CVPR 2020, Eq. 1, and its
        released code.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        if num_features % 2:
            raise ValueError(f"Expected `num_features` to be even, for two branches, but got {num_features}.")
        self.linear = nn.Linear(num_features, num_classes)

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its authors use its logits on the uniform mix."""
        return Prior.uniform(source.num_classes)

    def forward(
        self, features: Float[Tensor, "batch features"], alpha: float = 0.5
    ) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features, conventional branch first, with its weight `alpha`."""
        conventional, rebalancing = features.chunk(2, dim=1)
        mixed = torch.cat([alpha * conventional, (1 - alpha) * rebalancing], dim=1)
        logits: Tensor = self.linear(2 * mixed)
        return logits
