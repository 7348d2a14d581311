"""Labelled images of one size as one tensor."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from priorshift.priors import count_labels
from priorshift.shift import fingerprint, image_hashes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, small enough to live on the device as one tensor.

    Args:
        images: Pixels, `[N, channels, height, width]`, uint8.
        labels: Class indices, `[N]`.
        class_names: One name per class.
        white: The pixel value of full intensity.

    Raises:
        ValueError: If the parts do not fit together or a label is out of range.
    """

    images: UInt8[Tensor, "samples channels height width"]
    labels: Int[Tensor, " samples"]
    class_names: tuple[str, ...]
    white: int = 255

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                "Expected `images` of shape [N, channels, height, width] and dtype uint8, "
                f"but got {tuple(self.images.shape)}, {self.images.dtype}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Expected `labels` with one entry per image, {self.images.shape[0]}, "
                f"but got shape {tuple(self.labels.shape)}."
            )
        count_labels(self.labels, self.num_classes)

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each occurs here."""
        return len(self.class_names)

    @property
    def counts(self) -> Int[Tensor, " classes"]:
        """The number of images of each class, `[C]`."""
        return torch.from_numpy(count_labels(self.labels, self.num_classes))

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return self.images.shape[1]

    @cached_property
    def hashes(self) -> list[str]:
        """The hash of each image's content, `N` of them."""
        return image_hashes(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A short text that is equal for the same labelled images in any order, and for no others."""
        return fingerprint(self.hashes, self.labels)

    def __len__(self) -> int:
        return self.images.shape[0]

    def subset(self, indices: Int[Tensor, " chosen"] | Int[np.ndarray, " chosen"]) -> "ImageSet":
        """The images of these rows."""
        rows = torch.as_tensor(indices)
        return ImageSet(self.images[rows], self.labels[rows], self.class_names, self.white)
