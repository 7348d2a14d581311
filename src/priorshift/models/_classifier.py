"""A backbone and a head, which a later stage of training may replace."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """Logits of images: `head(backbone(images))`.

    Args:
        backbone: Images to features.
        head: Features to logits.
    """

    backbone: Any
    head: Any

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images, or of features."""
        logits: Tensor = self.head(self.backbone(images))
        return logits
