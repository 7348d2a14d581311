"""The user's own images."""

from dataclasses import replace

import torch

from priorshift.data._readers import WHOLE, find_splits, read_images
from priorshift.data._splits import Splits, hold_out
from priorshift.data._stored import StoredImages


def images(
    *,
    root: str,
    test: str = "",
    held_out: float = 0.1,
    test_share: float = 0.2,
    label_column: str = "",
    split_seed: int = 0,
) -> Splits:
    """Your own images: a folder per class, parquet, a list, or a Hugging Face data set.

    Where `root` has a test split (a folder `test/`, files `test*.parquet`) or `test` names one, those images
    are the test set; otherwise a share of every class is. Where it has a validation split (`val/`), that is
    used; otherwise a share of every class of the training images is held out. Both draws are pinned by the
    names of the images.

    Args:
        root: A folder of class folders, a folder with `train/` and `test/`, a `.csv` or `.txt` list of
            `path label` with paths relative to its own folder, a parquet file, or an id `owner/name`.
        test: The test images, in any of these forms.
        held_out: Share of each class held out of the training images for validation, in [0, 1).
        test_share: Share of each class split off for testing, in (0, 1), where there is no test split.
        label_column: The column of labels in parquet, CSV or a Hugging Face data set.
        split_seed: Seed of both draws.

    Raises:
        FileNotFoundError: If there is nothing at `root` or `test`, or images are missing.
        ValueError: If the images cannot be read, or a split has a class that the training images lack.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"Expected `test_share` to be in (0, 1), but got {test_share}.")
    if not 0 <= held_out < 1:
        raise ValueError(f"Expected `held_out` to be in [0, 1), but got {held_out}.")
    splits = find_splits(root, label_column=label_column)
    read_train = splits.get("train") or splits.get(WHOLE)
    if read_train is None:
        raise ValueError(f"Expected {root} to have a split 'train', but it has {', '.join(splits)}.")
    train = read_train()
    if test:
        tested = _with_classes_of(train, read_images(test, "test", label_column=label_column), test)
    elif "test" in splits:
        tested = _with_classes_of(train, splits["test"](), f"the test split of {root}")
    else:
        tested, train = hold_out(train, test_share, split_seed)
    if "validation" in splits:
        validation = _with_classes_of(train, splits["validation"](), f"the validation split of {root}")
    else:
        validation, train = hold_out(train, held_out, split_seed)
    return Splits(train, validation, tested)


def _with_classes_of(train: StoredImages, images: StoredImages, title: str) -> StoredImages:
    """The images with their labels as the training images count the classes, matched by name."""
    label_of = {name: label for label, name in enumerate(train.class_names)}
    unknown = [name for name in images.class_names if name not in label_of]
    if unknown:
        raise ValueError(
            f"Expected the classes of the training images, {train.num_classes} of them, in {title}, "
            f"but got {', '.join(map(repr, unknown[:5]))}{' …' if len(unknown) > 5 else ''}."
        )
    labels = torch.tensor([label_of[name] for name in images.class_names])[images.labels]
    return replace(images, labels=labels, class_names=train.class_names)
