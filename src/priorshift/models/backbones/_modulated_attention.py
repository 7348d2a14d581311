"""OLTR's modulated attention on feature maps."""

from jaxtyping import Float
from torch import Tensor, nn


class ModulatedAttention(nn.Module):
    r"""Self-attention over the places of a feature map, weighted by a spatial attention, and added.

    $$x + \mathrm{softmax}_{place}(m(x)) \odot W \, \mathrm{softmax}\!\left(\theta(x)^\top \varphi(x)\right)
    g(x)$$

    $W$ starts from zero, so that the layer starts as the identity. The released code computes $m$ by a fully
    connected layer on maps of 7 × 7; here it is a 1 × 1 convolution, which fits maps of any size.

    Args:
        channels: Channels of the map; the projections $\theta, \varphi, g$ have half as many.

    Example:
        >>> import torch
        >>> maps = torch.rand(2, 4, 3, 3)
        >>> torch.equal(ModulatedAttention(4)(maps), maps)
        True

    References:
        Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, Section 3; the
        self-attention is Wang et al., *Non-local Neural Networks*, CVPR 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.spatial = nn.Conv2d(channels, 1, 1)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The maps, with what they attend to added."""
        query, key, value = (each(maps).flatten(2) for each in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(dim=2)
        attended = self.out((value @ weights.transpose(1, 2)).unflatten(2, maps.shape[2:]))
        places = self.spatial(maps).flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        result: Tensor = maps + places * attended
        return result
