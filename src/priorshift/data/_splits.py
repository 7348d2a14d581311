"""The three splits that a run works with, and how the validation split is held out of the training set."""

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from priorshift.data._features import FeatureSet
from priorshift.data._images import ImageSet
from priorshift.data._stored import StoredImages
from priorshift.shift import split_off

Images = TypeVar("Images", ImageSet, StoredImages)


@runtime_checkable
class DataSet(Protocol):
    """What every set of images, or of their features, can say of itself."""

    @property
    def labels(self) -> Int[Tensor, " samples"]:
        """Class indices, `[N]`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""

    @property
    def num_classes(self) -> int:
        """The number of classes, whether or not each occurs here."""

    @property
    def counts(self) -> Int[Tensor, " classes"]:
        """The number of images of each class, `[C]`."""

    @property
    def channels(self) -> int:
        """The number of channels of an image, or of features."""

    @property
    def fingerprint(self) -> str:
        """A short text that is equal for the same labelled images in any order, and for no others."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images. Whatever is chosen is chosen on `validation`, never on `test`.

    The validation split may be empty: a run then chooses nothing.
    """

    train: ImageSet | StoredImages | FeatureSet
    validation: ImageSet | StoredImages | FeatureSet
    test: ImageSet | StoredImages | FeatureSet

    def named(self, split: str) -> ImageSet | StoredImages | FeatureSet:
        """The split of this name.

        Raises:
            ValueError: If there is none.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in splits:
            raise ValueError(f"Expected `split` to be one of {', '.join(splits)}, but got {split!r}.")
        return splits[split]

    def readable(self) -> "Splits":
        """The splits without the stored images that cannot be read, each of which is named in a warning."""
        parts = (self.train, self.validation, self.test)
        return Splits(*(part.readable() if isinstance(part, StoredImages) else part for part in parts))

    @property
    def summary(self) -> str:
        """Sizes, the largest and the smallest class, and the fingerprint of the training set, in one line."""
        counts = self.train.counts
        return (
            f"{len(self.train):,} training images of {self.train.num_classes:,} classes "
            f"({int(counts.max()):,} … {int(counts.min()):,} each, fingerprint {self.train.fingerprint}), "
            f"{len(self.validation):,} held out, {len(self.test):,} test images"
        )


def hold_out(train: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Hold a share of each class out of a long-tailed training set, pinned by content: validation, rest.

    A class gives `share` of its images, rounded down, but one at least if it has two or more; a class of one
    image keeps it. So validation has the class mix of the training set, and a score for another mix weights
    it.

    Args:
        train: The training set.
        share: Share of each class, in [0, 1); 0 holds nothing out.
        seed: Non-negative. Another seed gives other images.

    Returns:
        The held-out images and the rest.

    Raises:
        ValueError: If `share` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"Expected `held_out` to be in [0, 1), but got {share}.")
    if share == 0:
        return train.subset(torch.empty(0, dtype=torch.int64)), train
    per_class = [
        max(math.floor(share * count + 1e-9), 1) if count > 1 else 0 for count in train.counts.tolist()
    ]
    held_out, rest = split_off(train.hashes, train.labels, per_class, seed)
    return train.subset(held_out), train.subset(rest)
