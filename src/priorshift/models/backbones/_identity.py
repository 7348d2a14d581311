"""No backbone: the input is features already."""

from jaxtyping import Float
from torch import Tensor, nn


class Identity(nn.Module):
    """Features as they come, for a head on features that another network made before.

    Args:
        in_channels: Number of features $D$.

    Example:
        >>> import torch
        >>> Identity(3)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 2., 3.]])
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.num_features = in_channels

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """The features.

        Raises:
            ValueError: If they are not of shape `[N, D]`.
        """
        if features.shape[1:] != (self.num_features,):
            raise ValueError(
                f"Expected `features` of shape (N, {self.num_features}), but got {tuple(features.shape)}."
            )
        return features
