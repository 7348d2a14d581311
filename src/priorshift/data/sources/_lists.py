"""ImageNet-LT, Places-LT and iNaturalist 2018: the field's list files and a folder of images."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from priorshift.data._folders import data_folder
from priorshift.data._readers import read_inaturalist, read_list
from priorshift.data._splits import Splits, hold_out
from priorshift.data._stored import ImageFiles, StoredImages


@dataclass(frozen=True)
class _Benchmark:
    """What is known of a data set that lists define.

    Args:
        title: What it is called.
        name: What its folder is called.
        num_classes: Its number of classes.
        sizes: Its lists → the images that each of them names.
    """

    title: str
    name: str
    num_classes: int
    sizes: dict[str, int]


_IMAGENET_LT = _Benchmark(
    "ImageNet-LT",
    "imagenet_lt",
    1_000,
    {"ImageNet_LT_train.txt": 115_846, "ImageNet_LT_val.txt": 20_000, "ImageNet_LT_test.txt": 50_000},
)
_PLACES_LT = _Benchmark(
    "Places-LT",
    "places_lt",
    365,
    {"Places_LT_train.txt": 62_500, "Places_LT_val.txt": 7_300, "Places_LT_test.txt": 36_500},
)
_INATURALIST18 = _Benchmark(
    "iNaturalist 2018",
    "inaturalist18",
    8_142,
    {
        "iNaturalist18_train.txt": 437_513,
        "iNaturalist18_val.txt": 24_426,
        "train2018.json": 437_513,
        "val2018.json": 24_426,
    },
)


def imagenet_lt(
    *, root: str = "", lists: str = "", test_list: str = "", held_out: float = 0.0, split_seed: int = 0
) -> Splits:
    """ImageNet-LT: 115,846 training images of 1,000 classes, and its balanced test set of 50,000.

    Below `root` are `train/<synset>/` and `val/`, the latter flat or with a folder per class, whichever way a
    list writes it. Classes are called by their synsets.

    Args:
        root: The folder of ImageNet's images. Without it `$PRIORSHIFT_DATA/imagenet_lt`, else
            `data/imagenet_lt`.
        lists: The folder of `ImageNet_LT_train.txt`, `ImageNet_LT_val.txt` and `ImageNet_LT_test.txt`;
            without it `root`.
        test_list: Another list of test images, a path or a file in `lists`, such as the shifted
            `ImageNet_LT_forward50.txt`.
        held_out: Share of each class held out of the training set for validation, in [0, 1); at 0 the
            official validation list, 20 images of each class, is used.
        split_seed: Seed of the draw of the held-out images, which is pinned by their names.

    Raises:
        FileNotFoundError: If lists or images are not there.
        ValueError: If a list is not ImageNet-LT's, or an option is out of range.

    References:
        Liu et al., *Large-scale long-tailed recognition in an open world*, CVPR 2019.
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021.
    """
    folder, lists_in = _places(_IMAGENET_LT, root, lists)
    train = _named_by_path(
        _read(_IMAGENET_LT, lists_in / "ImageNet_LT_train.txt", folder), lambda parts: "/".join(parts[-2:-1])
    )
    tested = _found(test_list, lists_in) if test_list else lists_in / "ImageNet_LT_test.txt"
    test = _read_validation_images(_IMAGENET_LT, tested, folder)
    return _splits(_IMAGENET_LT, train, test, lists_in / "ImageNet_LT_val.txt", folder, held_out, split_seed)


def places_lt(
    *, root: str = "", lists: str = "", test_list: str = "", held_out: float = 0.0, split_seed: int = 0
) -> Splits:
    """Places-LT: 62,500 training images of 365 classes, 4,980 down to 5, and its balanced test set of 36,500.

    Below `root` are `data_256/` and `val_256/`. Classes are called as their folders are,
    `apartment_building/outdoor`.

    Args:
        root: The folder of Places365's images. Without it `$PRIORSHIFT_DATA/places_lt`, else
            `data/places_lt`.
        lists: The folder of `Places_LT_train.txt`, `Places_LT_val.txt` and `Places_LT_test.txt`; without it
            `root`.
        test_list: Another list of test images, a path or a file in `lists`.
        held_out: Share of each class held out of the training set for validation, in [0, 1); at 0 the
            official validation list, 20 images of each class, is used.
        split_seed: Seed of the draw of the held-out images, which is pinned by their names.

    Raises:
        FileNotFoundError: If lists or images are not there.
        ValueError: If a list is not Places-LT's, or an option is out of range.

    Reference:
        Liu et al., *Large-scale long-tailed recognition in an open world*, CVPR 2019.
    """
    folder, lists_in = _places(_PLACES_LT, root, lists)
    train = _named_by_path(
        _read(_PLACES_LT, lists_in / "Places_LT_train.txt", folder), lambda parts: "/".join(parts[2:-1])
    )
    tested = _found(test_list, lists_in) if test_list else lists_in / "Places_LT_test.txt"
    test = _read(_PLACES_LT, tested, folder)
    return _splits(_PLACES_LT, train, test, lists_in / "Places_LT_val.txt", folder, held_out, split_seed)


def inaturalist18(
    *, root: str = "", lists: str = "", test_list: str = "", held_out: float = 0.0, split_seed: int = 0
) -> Splits:
    """The 437,513 training images of iNaturalist 2018, 8,142 classes, tested on its 24,426 validation images.

    Below `root` is `train_val2018/`. The training and the test images are those of `train2018.json` and
    `val2018.json`, or else of `iNaturalist18_train.txt` and `iNaturalist18_val.txt`, whose classes have no
    names. There is no other validation split than what `held_out` takes from the training set.

    Args:
        root: The folder of iNaturalist's images. Without it `$PRIORSHIFT_DATA/inaturalist18`, else
            `data/inaturalist18`.
        lists: The folder of the lists; without it `root`.
        test_list: Another list of test images, a path or a file in `lists`.
        held_out: Share of each class held out of the training set for validation, in [0, 1).
        split_seed: Seed of the draw of the held-out images, which is pinned by their names.

    Raises:
        FileNotFoundError: If lists or images are not there.
        ValueError: If a list is not iNaturalist 2018's, or an option is out of range.

    Reference:
        Van Horn et al., *The iNaturalist species classification and detection dataset*, CVPR 2018.
    """
    folder, lists_in = _places(_INATURALIST18, root, lists)
    train_file, test_file = (
        lists_in / official if (lists_in / official).is_file() else lists_in / listed
        for official, listed in (
            ("train2018.json", "iNaturalist18_train.txt"),
            ("val2018.json", "iNaturalist18_val.txt"),
        )
    )
    train = _read(_INATURALIST18, train_file, folder)
    test = _read(_INATURALIST18, _found(test_list, lists_in) if test_list else test_file, folder)
    return _splits(_INATURALIST18, train, test, None, folder, held_out, split_seed)


def _places(benchmark: _Benchmark, root: str, lists: str) -> tuple[Path, Path]:
    """The folder of the images and that of the lists."""
    folder = data_folder(benchmark.name, root)
    if not lists:
        return folder, folder
    lists_in = Path(lists).expanduser()
    if not lists_in.is_dir():
        raise FileNotFoundError(
            f"Expected `lists` to be the folder of {benchmark.title}'s lists, "
            f"but there is no folder {lists_in}."
        )
    return folder, lists_in


def _found(test_list: str, lists_in: Path) -> Path:
    """The list at this path, or of this name beside the others."""
    path = Path(test_list).expanduser()
    return path if path.is_file() else lists_in / path


def _read(benchmark: _Benchmark, file: Path, root: Path) -> StoredImages:
    if file.suffix == ".json":
        images = read_inaturalist(file, root=root)
        _check_size(benchmark, file, len(images))
        if images.num_classes != benchmark.num_classes:
            raise ValueError(
                f"Expected the {benchmark.num_classes:,} categories of {benchmark.title}, "
                f"but {file} has {images.num_classes:,}."
            )
        return images
    _check_list(benchmark, file)
    return read_list(file, root=root, num_classes=benchmark.num_classes)


class _ValidationImages:
    """Images below `val/`, called the same wherever there they lie."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def name(self, row: int) -> str:
        return f"val/{Path(self._files.name(row)).name}"

    def encoded(self, row: int) -> str:
        return self._files.encoded(row)


def _read_validation_images(benchmark: _Benchmark, file: Path, root: Path) -> StoredImages:
    """Images of ImageNet's `val/`, which may be flat or in class folders both in the list and on the disk."""
    _check_list(benchmark, file)
    rows = [line.rsplit(None, 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not rows or not all(
        row[0].startswith("val/") and row[-1].isdecimal() and int(row[-1]) < benchmark.num_classes
        for row in rows
    ):
        return read_list(file, root=root, num_classes=benchmark.num_classes)
    path_of = {
        name: os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root / "val", followlinks=True)
        for name in names
    }
    names = [Path(path).name for path, _ in rows]
    missing = [path for (path, _), name in zip(rows, names, strict=True) if name not in path_of]
    if missing:
        raise FileNotFoundError(
            f"Expected the {len(rows):,} images of {file} in {root / 'val'} or in class folders there, "
            f"but {len(missing):,} are missing: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}."
        )
    paths = [os.fsencode(path_of[name]) for name in names]
    files = ImageFiles(root, b"".join(paths), np.cumsum([len(path) for path in paths]))
    store = _ValidationImages(files)
    labels = torch.tensor([int(label) for _, label in rows])
    return StoredImages(store, torch.arange(len(rows)), labels, tuple(map(str, range(benchmark.num_classes))))


def _check_list(benchmark: _Benchmark, file: Path) -> None:
    """Refuse a list that is missing or of another data set, before its images are looked for."""
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected a list of {benchmark.title}, but there is no file {file}: "
            "pass the folder of the lists as `lists`."
        )
    for other in (_IMAGENET_LT, _PLACES_LT, _INATURALIST18):
        if file.name in other.sizes and other is not benchmark:
            raise ValueError(f"Expected a list of {benchmark.title}, but {file} is one of {other.title}.")
    with file.open("rb") as lines:
        _check_size(benchmark, file, sum(1 for line in lines if line.strip()))


def _check_size(benchmark: _Benchmark, file: Path, size: int) -> None:
    expected = benchmark.sizes.get(file.name, size)
    if size != expected:
        owners = [it.title for it in (_IMAGENET_LT, _PLACES_LT, _INATURALIST18) if size in it.sizes.values()]
        raise ValueError(
            f"Expected {benchmark.title}'s {file.name} of {expected:,} images, but {file} has {size:,}"
            f"{f', as a list of {owners[0]} has' if owners else ''}."
        )


def _named_by_path(images: StoredImages, class_name: Callable[[list[str]], str]) -> StoredImages:
    """The images with each class called by the path of one of its images, split at the slashes."""
    labels, first = np.unique(images.labels.numpy(), return_index=True)
    names = list(images.class_names)
    for label, index in zip(labels.tolist(), first.tolist(), strict=True):
        names[label] = class_name(images.name(index).split("/")) or names[label]
    return replace(images, class_names=tuple(names))


def _splits(
    benchmark: _Benchmark,
    train: StoredImages,
    test: StoredImages,
    validation_list: Path | None,
    root: Path,
    held_out: float,
    split_seed: int,
) -> Splits:
    """The splits, with the classes called as in the training set."""
    empty = torch.nonzero(train.counts == 0).flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected training images of each of {benchmark.title}'s {benchmark.num_classes:,} classes, "
            f"but class {empty[0]} has none."
        )
    if held_out == 0 and validation_list is not None:
        validation = replace(_read(benchmark, validation_list, root), class_names=train.class_names)
    else:
        validation, train = hold_out(train, held_out, split_seed)
    return Splits(train=train, validation=validation, test=replace(test, class_names=train.class_names))
