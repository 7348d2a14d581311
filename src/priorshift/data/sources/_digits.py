"""scikit-learn's handwritten digits, made long-tailed: real images that need no download."""

from typing import Literal

import torch

from priorshift.data._images import ImageSet
from priorshift.data._splits import Splits
from priorshift.shift import draw_subset, image_hashes, long_tail_counts, split_off

TEST_PER_CLASS = 60
VALIDATION_PER_CLASS = 14


def digits_lt(
    *,
    imbalance: float = 50.0,
    max_count: int = 100,
    profile: Literal["exp", "step"] = "exp",
    split_seed: int = 0,
) -> Splits:
    """Handwritten digits, 8 × 8: a long-tailed training set, balanced validation and test sets.

    1,797 images, of which 60 of each class are held out for testing and 14 for validation; the
    training set is drawn from the rest, digit 0 being the most frequent class. The rarest digit has 174
    images in all, so `max_count` can be 100 at most. Every split is pinned by content.

    Args:
        imbalance: Images of the largest class over those of the smallest.
        max_count: Training images of the largest class.
        profile: "exp" or "step", see `priorshift.shift.long_tail_counts`.
        split_seed: Seed of all three draws.

    Raises:
        ValueError: If a class has too few images for the counts asked for.

    References:
        E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    every = ImageSet(
        images=torch.tensor(bunch.images, dtype=torch.uint8).unsqueeze(1),
        labels=torch.tensor(bunch.target, dtype=torch.int64),
        class_names=tuple(str(name) for name in bunch.target_names),
        white=16,
    )
    hashes = image_hashes(every.images)
    test, rest = split_off(hashes, every.labels, TEST_PER_CLASS, split_seed)
    pool, hashes = every.subset(rest), [hashes[row] for row in rest.tolist()]
    validation, rest = split_off(hashes, pool.labels, VALIDATION_PER_CLASS, split_seed + 1)
    remaining, hashes = pool.subset(rest), [hashes[row] for row in rest.tolist()]
    counts = long_tail_counts(every.num_classes, max_count, imbalance, profile)
    train = draw_subset(hashes, remaining.labels, counts, split_seed + 2)
    return Splits(train=remaining.subset(train), validation=pool.subset(validation), test=every.subset(test))
