"""A small convolutional network for images of a few pixels."""

from jaxtyping import Float
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3 × 3 convolutions with batch normalisation, two poolings, a linear classifier.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        width: Channels of the first convolution; the others have twice as many.
    """

    def __init__(self, in_channels: int, num_classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self._block(in_channels, width),
            nn.MaxPool2d(2),
            *self._block(width, 2 * width),
            *self._block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

    @staticmethod
    def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
