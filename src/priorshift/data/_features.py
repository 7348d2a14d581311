"""Features that a frozen backbone made of images once, in memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from priorshift.priors import count_labels


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Labelled features of images, one row an image.

    Args:
        features: What the backbone made of each image, `[N, D]`, a floating dtype.
        labels: Class indices, `[N]`.
        class_names: One name per class.
        fingerprint: That of the images.

    Raises:
        ValueError: If the parts do not fit together or a label is out of range.
    """

    features: Float[Tensor, "samples features"]
    labels: Int[Tensor, " samples"]
    class_names: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.is_floating_point():
            raise ValueError(
                "Expected `features` of shape [N, features] and a floating dtype, "
                f"but got {tuple(self.features.shape)}, {self.features.dtype}."
            )
        if self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                f"Expected `labels` with one entry per row of features, {self.features.shape[0]}, "
                f"but got shape {tuple(self.labels.shape)}."
            )
        count_labels(self.labels, self.num_classes)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each occurs here."""
        return len(self.class_names)

    @property
    def counts(self) -> Int[Tensor, " classes"]:
        """The number of rows of each class, `[C]`."""
        return torch.from_numpy(count_labels(self.labels, self.num_classes))

    @property
    def channels(self) -> int:
        """The number of features."""
        return self.features.shape[1]

    def __len__(self) -> int:
        return self.features.shape[0]
