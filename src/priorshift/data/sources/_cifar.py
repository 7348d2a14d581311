"""CIFAR-10 and CIFAR-100, made long-tailed."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from priorshift.data._cifar_pickles import read_cifar_pickle
from priorshift.data._folders import data_folder
from priorshift.data._images import ImageSet
from priorshift.data._readers import read_folder, read_images
from priorshift.data._splits import Splits, hold_out
from priorshift.data._stored import StoredImages, UnreadableImageError
from priorshift.shift import draw_subset, long_tail_counts


@dataclass(frozen=True)
class _Cifar:
    """What is known of one of the two data sets.

    Args:
        title: What it is called.
        name: What its folder is called.
        pickles: What the folder of its own files is called.
        train_files: Its own training files.
        test_file: Its own test file.
        label_key: What the labels are called in its own files.
        label_columns: What the labels may be called in a table.
        class_names: The names of its classes.
        train_count: Training images of every class.
        first_labels: The labels of its first ten training images.
    """

    title: str
    name: str
    pickles: str
    train_files: tuple[str, ...]
    test_file: str
    label_key: str
    label_columns: tuple[str, ...]
    class_names: tuple[str, ...]
    train_count: int
    first_labels: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
_CIFAR10 = _Cifar(
    title="CIFAR-10",
    name="cifar10",
    pickles="cifar-10-batches-py",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_file="test_batch",
    label_key="labels",
    label_columns=("label", "labels"),
    class_names=tuple(_CIFAR10_CLASSES.split()),
    train_count=5000,
    first_labels=(6, 9, 9, 4, 1, 1, 2, 7, 8, 3),
)
_CIFAR100 = _Cifar(
    title="CIFAR-100",
    name="cifar100",
    pickles="cifar-100-python",
    train_files=("train",),
    test_file="test",
    label_key="fine_labels",
    label_columns=("fine_label", "fine_labels", "label", "labels"),
    class_names=tuple(_CIFAR100_CLASSES.split()),
    train_count=500,
    first_labels=(19, 29, 0, 11, 1, 86, 90, 28, 23, 31),
)
_SIDE = 32


def cifar10_lt(
    *,
    root: str = "",
    imbalance: float = 100.0,
    profile: Literal["exp", "step"] = "exp",
    max_count: int = 0,
    held_out: float = 0.0,
    subset: Literal["content", "ldam-seed0"] = "content",
    split_seed: int = 0,
) -> Splits:
    """CIFAR-10-LT: a long-tailed training set of 32 × 32 images, and the balanced test set of 10,000.

    Options are those of `cifar100_lt`; the largest class can have 5,000 images.

    Args:
        root: Its folder, in any of the layouts, or an id `owner/name`. Without it `$PRIORSHIFT_DATA/cifar10`,
            else `data/cifar10`.
        imbalance: Images of the largest class over those of the smallest.
        profile: "exp" or "step", see `priorshift.shift.long_tail_counts`.
        max_count: Training images of the largest class; 0 for all 5,000.
        held_out: Share of each class held out of the long-tailed training set for validation, in [0, 1).
        subset: "content", or "ldam-seed0" for the one that LDAM-DRW's code draws.
        split_seed: Seed of the draws that are pinned by content.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If they are not CIFAR-10, or an option is out of range.

    References:
        A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
        Cao et al., *Learning imbalanced datasets with label-distribution-aware margin loss*, NeurIPS 2019.
    """
    return _long_tailed(_CIFAR10, root, imbalance, profile, max_count, held_out, subset, split_seed)


def cifar100_lt(
    *,
    root: str = "",
    imbalance: float = 100.0,
    profile: Literal["exp", "step"] = "exp",
    max_count: int = 0,
    held_out: float = 0.0,
    subset: Literal["content", "ldam-seed0"] = "content",
    split_seed: int = 0,
) -> Splits:
    """CIFAR-100-LT: a long-tailed training set of 32 × 32 images, and the balanced test set of 10,000.

    The training set has 10,847, 12,608 or 19,573 images at imbalance 100, 50 or 10. It is pinned by content:
    the same images in the same order from `cifar-100-python/` as torchvision and Krizhevsky have it, from
    `train*.parquet` and `test*.parquet`, from `train/<class>/` and `test/<class>/`, or from the hub. One
    seed's subsets are nested. `subset="ldam-seed0"` draws the one that LDAM-DRW's code draws, for comparison
    with scores on it; only data in the original order give it.

    Args:
        root: Its folder, in any of these layouts, or an id `owner/name`. Without it
            `$PRIORSHIFT_DATA/cifar100`, else `data/cifar100`.
        imbalance: Images of the largest class over those of the smallest.
        profile: "exp" or "step", see `priorshift.shift.long_tail_counts`.
        max_count: Training images of the largest class; 0 for all 500.
        held_out: Share of each class held out of the long-tailed training set for validation, in [0, 1).
        subset: "content", or "ldam-seed0" for the one that LDAM-DRW's code draws.
        split_seed: Seed of the draws that are pinned by content.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If they are not CIFAR-100, or an option is out of range.

    References:
        A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
        Cao et al., *Learning imbalanced datasets with label-distribution-aware margin loss*, NeurIPS 2019.
    """
    return _long_tailed(_CIFAR100, root, imbalance, profile, max_count, held_out, subset, split_seed)


def _long_tailed(
    cifar: _Cifar,
    root: str,
    imbalance: float,
    profile: Literal["exp", "step"],
    max_count: int,
    held_out: float,
    subset: str,
    split_seed: int,
) -> Splits:
    if not 0 <= max_count <= cifar.train_count:
        raise ValueError(
            f"Expected `max_count` between 1 and {cifar.train_count}, or 0 for all, but got {max_count}."
        )
    if subset not in ("content", "ldam-seed0"):
        raise ValueError(f"Expected `subset` to be 'content' or 'ldam-seed0', but got {subset!r}.")
    largest = max_count or cifar.train_count
    counts = long_tail_counts(cifar.num_classes, largest, imbalance, profile)
    is_id = root.count("/") == 1 and not Path(root).expanduser().exists()
    every, test = _read_whole(cifar, root if is_id else str(data_folder(cifar.name, root)))
    if subset == "content":
        rows = _in_order_of_content(every, draw_subset(every.hashes, every.labels, counts, split_seed))
    else:
        rows = _ldam_rows(cifar, every.labels, largest, imbalance, profile)
    validation, train = hold_out(every.subset(rows), held_out, split_seed)
    return Splits(train=train, validation=validation, test=test)


def _in_order_of_content(images: ImageSet, rows: Int[np.ndarray, " drawn"]) -> Int[Tensor, " drawn"]:
    """The rows in an order that does not depend on the one they were read in, so that runs do not either."""
    labels = images.labels.tolist()
    return torch.tensor(sorted(rows.tolist(), key=lambda row: (images.hashes[row], labels[row])))


def _ldam_rows(
    cifar: _Cifar, labels: Int[Tensor, " n"], largest: int, imbalance: float, profile: str
) -> Int[Tensor, " drawn"]:
    """What `IMBALANCECIFAR10` and `IMBALANCECIFAR100` of LDAM-DRW draw with `rand_number=0`."""
    first = tuple(labels[:10].tolist())
    if first != cifar.first_labels:
        raise ValueError(
            "Expected the original order of the images for `subset` 'ldam-seed0', which draws by row number, "
            f"so that the first labels are {cifar.first_labels}, but got {first}: read {cifar.pickles}, "
            "or use 'content'."
        )
    generator = np.random.RandomState(0)
    smallest = 1 / imbalance
    drawn = []
    for label in range(cifar.num_classes):
        if profile == "exp":
            share = smallest ** (label / (cifar.num_classes - 1.0))
        else:
            share = 1.0 if label < cifar.num_classes / 2 else smallest
        rows = np.where(labels.numpy() == label)[0]
        generator.shuffle(rows)
        drawn.append(rows[: int(largest * share)])
    return torch.from_numpy(np.concatenate(drawn))


@lru_cache(maxsize=2)
def _read_whole(cifar: _Cifar, where: str) -> tuple[ImageSet, ImageSet]:
    """All training and test images, read once a process and place."""
    splits = _read_splits(cifar, where)
    for split, images, count in zip(
        ("training", "test"), splits, (cifar.train_count, cifar.train_count // 5), strict=True
    ):
        wrong = torch.nonzero(images.counts != count).flatten().tolist()
        if wrong:
            name = images.class_names[wrong[0]]
            raise ValueError(
                f"Expected {cifar.title}, {count:,} {split} images of each of {cifar.num_classes} classes, "
                f"but {where} has {int(images.counts[wrong[0]]):,} of {name!r}: is it all of {cifar.title}?"
            )
    return splits


def _read_splits(cifar: _Cifar, where: str) -> tuple[ImageSet, ImageSet]:
    folder = Path(where)
    if not folder.is_dir():
        return (_from_hub(cifar, where, "train"), _from_hub(cifar, where, "test"))
    for pickles in (folder / cifar.pickles, folder):
        if (pickles / cifar.test_file).is_file():
            train = [pickles / name for name in cifar.train_files]
            return _from_pickles(cifar, train), _from_pickles(cifar, [pickles / cifar.test_file])
    train, test = (
        sorted(folder.glob(f"{split}*.parquet")) or sorted(folder.glob(f"*/{split}*.parquet"))
        for split in ("train", "test")
    )
    if train and test:
        return _from_parquet(cifar, train), _from_parquet(cifar, test)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train_folder, test_folder = folder / "train", folder / "test"
        return (
            _from_stored(cifar, read_folder(train_folder), train_folder),
            _from_stored(cifar, read_folder(test_folder), test_folder),
        )
    other = _CIFAR10 if cifar is _CIFAR100 else _CIFAR100
    is_other = (folder / other.test_file).is_file() or (folder / other.pickles).is_dir()
    raise ValueError(
        f"Expected {cifar.title} in {folder} as {cifar.pickles}/, as train*.parquet and test*.parquet or as "
        f"train/<class>/ and test/<class>/, but it holds {other.title if is_other else 'none of them'}."
    )


def _from_pickles(cifar: _Cifar, files: list[Path]) -> ImageSet:
    images, labels = zip(*(read_cifar_pickle(file, cifar.label_key) for file in files), strict=True)
    return _checked(cifar, torch.cat(images), torch.cat(labels), files[0].parent)


def _from_parquet(cifar: _Cifar, files: list[Path]) -> ImageSet:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        dataset = pq.ParquetDataset(files)
        columns = dataset.schema.names
        image_column = _column(columns, ("img", "image"), files[0])
        label_column = _column(columns, cifar.label_columns, files[0])
        table = dataset.read(columns=[image_column, label_column])
        encoded = pc.struct_field(table.column(image_column), "bytes").to_pylist()
        labels = torch.tensor(table.column(label_column).cast(pa.int64()).to_numpy())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"Expected {cifar.title}'s images as {{bytes, path}} and whole numbers as labels, "
            f"but {files[0]} cannot be read so ({error})."
        ) from error
    images = _decode(
        len(labels), lambda row: io.BytesIO(encoded[row] or b""), lambda row: f"{files[0]} row {row}"
    )
    return _checked(cifar, images, labels, files[0])


def _column(columns: list[str], names: tuple[str, ...], file: Path) -> str:
    for name in names:
        if name in columns:
            return name
    raise ValueError(
        f"Expected a column called {' or '.join(names)} in {file}, but its columns are {', '.join(columns)}."
    )


def _from_hub(cifar: _Cifar, name: str, split: str) -> ImageSet:
    stored = read_images(name, split, label_column=cifar.label_columns[0])
    return _from_stored(cifar, stored, name)


def _from_stored(cifar: _Cifar, stored: StoredImages, where: str | Path) -> ImageSet:
    """The images, decoded; the classes go by their names, or by their numbers where they are called so."""
    label_of = {name: label for label, name in enumerate(cifar.class_names)}
    label_of |= {str(label): label for label in range(cifar.num_classes)}
    unknown = [name for name in stored.class_names if name not in label_of]
    if unknown:
        raise ValueError(
            f"Expected the classes of {cifar.title} by name or number, {cifar.class_names[0]!r} or '0' …, "
            f"in {where}, but got {unknown[0]!r}."
        )
    labels = torch.tensor([label_of[name] for name in stored.class_names])[stored.labels]
    rows = stored.rows.tolist()
    images = _decode(len(rows), lambda index: stored.store.encoded(rows[index]), stored.name)
    return _checked(cifar, images, labels, where)


def _decode(
    size: int, encoded: Callable[[int], str | io.BytesIO], name: Callable[[int], str]
) -> UInt8[Tensor, "samples 3 32 32"]:
    from PIL import Image

    pixels = np.empty((size, _SIDE, _SIDE, 3), dtype=np.uint8)
    for index in range(size):
        try:
            with Image.open(encoded(index)) as image:
                rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise UnreadableImageError(
                f"Expected an image that can be read, but got {name(index)} ({error})."
            ) from error
        if rgb.shape != pixels.shape[1:]:
            raise ValueError(
                f"Expected images of {_SIDE} × {_SIDE} as CIFAR's are, "
                f"but got {rgb.shape[1]} × {rgb.shape[0]} for {name(index)}."
            )
        pixels[index] = rgb
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _checked(cifar: _Cifar, images: Tensor, labels: Int[Tensor, " n"], where: str | Path) -> ImageSet:
    found = int(labels.max()) + 1 if len(labels) else 0
    if found != cifar.num_classes:
        other = next((f", as {it.title} has" for it in (_CIFAR10, _CIFAR100) if it.num_classes == found), "")
        raise ValueError(
            f"Expected {cifar.title} of {cifar.num_classes} classes, but {where} has {found}{other}."
        )
    return ImageSet(images, labels, cifar.class_names)
