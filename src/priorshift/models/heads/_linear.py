"""Linear heads: the ordinary one, and the one on normalised features and weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """The ordinary linear classifier, with a bias.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)


class CosineHead(nn.Module):
    r"""Unit-norm classifier: scaled cosines of features and class weights, without a bias.

    $$f_y(x) = s \, \frac{w_y^\top \phi(x)}{\|w_y\| \|\phi(x)\|}$$

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
        scale: Factor $s > 0$: 1 gives cosines, which `LDAMLoss` scales by itself.
        learned: Whether the scale is trained, from that start.

    Raises:
        ValueError: If `scale` is not positive.

    References:
        Kim and Kim, *Adjusting Decision Boundary for Class Imbalanced Learning*, 2019; Cao et al., NeurIPS
        2019, released code.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, scale: float = 16.0, learned: bool = False
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"Expected `scale` to be positive, but got {scale}.")
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        factor = torch.tensor(float(scale))
        if learned:
            self.scale = nn.Parameter(factor)
        else:
            self.register_buffer("scale", factor)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def linear_before(previous: nn.Module) -> LinearHead:
    """The head before this one, where only a linear one will do.

    Raises:
        ValueError: If it is another.
    """
    if not isinstance(previous, LinearHead):
        raise ValueError(
            "Expected the head before this one to be `linear`, whose weights it takes over, "
            f"but got {type(previous).__name__}."
        )
    return previous
