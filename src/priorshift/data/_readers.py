"""Readers of labelled images in the layouts that people have them in."""

import csv
import json
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from priorshift.data._stored import ImageFiles, ImageTable, StoredImages

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
"""What a split may be called → what it is called here."""
WHOLE = "all"
"""What the images are called that belong to no split."""
_PATH_COLUMNS = ("path", "file_name", "filename", "image")
IntArray = npt.NDArray[np.int64]
_SHOWN = 5
_SHOWN_CHARACTERS = 80


def read_folder(folder: str | Path) -> StoredImages:
    """Images in one subfolder per class; the classes are the subfolders, sorted by name.

    Images are found by their file-name endings, however deep they lie in the folder of their class. Hidden
    files and folders are passed over.

    Args:
        folder: The folder of the class folders.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no subfolders, or one without images.
    """
    folder = Path(folder)
    class_names = _subfolders(folder)
    if not class_names:
        raise ValueError(f"Expected one subfolder per class in {folder}, but it has no subfolder.")
    files, labels = _PathBlock(), array("q")
    for label, class_name in enumerate(class_names):
        for path in _images_below(folder, class_name):
            files.append(os.fsencode(path))
            labels.append(label)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0).tolist()
    if empty:
        raise ValueError(
            f"Expected images ({', '.join(IMAGE_ENDINGS)}) in every class folder of {folder}, but "
            f"{_some([class_names[label] for label in empty])} {'has' if len(empty) == 1 else 'have'} none."
        )
    return _stored(files.below(folder), labels, class_names)


def read_list(
    file: str | Path,
    *,
    root: str | Path,
    class_names: Sequence[str] = (),
    num_classes: int = 0,
    label_column: str = "",
) -> StoredImages:
    """Images that a list file names with their labels: lines `path label`, or CSV.

    In a text file the label is what follows the last blank, a class index from 0; paths may hold blanks. In
    a `.csv` file the columns are path and label, or those that a header calls `path` and `label`; labels may
    be names, whose sorted order is then that of the classes. Empty lines are passed over. Whether the images
    exist is looked up by listing their folders.

    Args:
        file: The list.
        root: The folder that the paths are relative to.
        class_names: The name of every class; without it the names are the indices.
        num_classes: The number of classes; without it and `class_names`, one more than the largest label.
        label_column: The column of a CSV file's labels, if it is not called `label`.

    Raises:
        FileNotFoundError: If there is no such list, or images are missing.
        ValueError: If a line cannot be read or its label is out of range, naming the line.
    """
    file, root = Path(file), Path(root)
    if not file.is_file():
        raise FileNotFoundError(f"Expected a list of images, but there is no file {file}.")
    is_csv = file.suffix.lower() == ".csv"
    rows = _csv_rows(file, label_column) if is_csv else _text_rows(file)
    files, lines, found = _PathBlock(), array("q"), []
    for line, path, label in rows:
        files.append(path)
        lines.append(line)
        found.append(label)
    if not found:
        raise ValueError(f"Expected a list of images and labels, but {file} has none.")
    names = tuple(class_names)
    if is_csv and not _is_index(found[0]):
        names = names or tuple(sorted(set(found)))
        labels = _look_up({name: label for label, name in enumerate(names)}.__getitem__, found, lines, file)
    else:
        labels = _look_up(int, found, lines, file)
        names = names or tuple(map(str, range(num_classes or int(labels.max()) + 1)))
    if num_classes not in (0, len(names)):
        raise ValueError(f"Expected {num_classes} classes, but {file} has {len(names)}: {_some(names)}.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"Expected labels between 0 and {len(names) - 1}, but line {lines[first]} of {file} has "
            f"{labels[first]} ({len(wrong)} out of range; is it the list of another data set?)."
        )
    del found, lines
    store = files.below(root)
    _check_files(store, file)
    return _stored(store, labels, names)


def read_inaturalist(json_file: str | Path, *, root: str | Path) -> StoredImages:
    """Images of an iNaturalist competition by its official JSON; the classes are its categories by id.

    Args:
        json_file: Such as `train2018.json`: `images` (id, file_name), `annotations` (image_id, category_id)
            and `categories` (id, name).
        root: The folder that the file names are relative to.

    Raises:
        FileNotFoundError: If there is no such file, or images are missing.
        ValueError: If it is no such JSON, or its parts do not fit together.
    """
    json_file, root = Path(json_file), Path(root)
    if not json_file.is_file():
        raise FileNotFoundError(f"Expected iNaturalist's JSON, but there is no file {json_file}.")
    try:
        content = json.loads(json_file.read_bytes())
        class_of = {row["image_id"]: row["category_id"] for row in content["annotations"]}
        categories = {row["id"]: row["name"] for row in content["categories"]}
        images = [(row["id"], row["file_name"]) for row in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "Expected iNaturalist's JSON with `images`, `annotations` and `categories`, "
            f"but {json_file} is not ({type(error).__name__}: {error})."
        ) from error
    label_of = {category: label for label, category in enumerate(sorted(categories))}
    files, labels = _PathBlock(), array("q")
    for image, file_name in images:
        if class_of.get(image) not in label_of:
            raise ValueError(
                f"Expected a known category for every image of {json_file}, "
                f"but {file_name} has {class_of.get(image)}."
            )
        files.append(os.fsencode(file_name))
        labels.append(label_of[class_of[image]])
    if not images:
        raise ValueError(f"Expected images in {json_file}, but it has none.")
    store = files.below(root)
    _check_files(store, json_file)
    return _stored(store, labels, [str(categories[category]) for category in sorted(categories)])


def read_parquet(
    files: str | Path | Sequence[str | Path], *, label_column: str = "", image_column: str = ""
) -> StoredImages:
    """Images and labels in the columns of parquet files, as Hugging Face data sets have them.

    `datasets` copies the files once to its cache as Arrow, which is read without being loaded.

    Args:
        files: One file, or several that follow each other.
        label_column: The column of labels; without it, the only one of class labels or whole numbers.
        image_column: The column of images; without it, the only one of `{bytes, path}`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, or the columns are not found or not clear.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise FileNotFoundError(f"Expected parquet files, but there is no file {_some(missing)}.")
    from datasets import load_dataset

    title = paths[0].name if len(paths) == 1 else f"{paths[0].name} … {paths[-1].name}"
    try:
        table = load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # of `datasets`, pyarrow or fsspec
        raise ValueError(
            f"Expected parquet files, but {_some([str(path) for path in paths])} cannot be read."
        ) from error
    return _from_table(table, title, label_column, image_column)


def read_hub(
    name: str, split: str = "train", *, label_column: str = "", image_column: str = ""
) -> StoredImages:
    """Images and labels of a Hugging Face data set: an id of the hub, or a folder of the same form.

    Args:
        name: Such as `owner/name`.
        split: Such as `train`.
        label_column: The column of labels; without it, the only one of class labels or whole numbers.
        image_column: The column of images; without it, the only one of `{bytes, path}`.

    Raises:
        ValueError: If there is no such data set or split, or the columns are not found or not clear.
    """
    from datasets import load_dataset

    try:
        table = load_dataset(name, split=split)
    except Exception as error:  # of `datasets`, its hub client or pyarrow
        raise _no_data_set(name, error) from error
    return _from_table(table, f"{Path(name).name} {split}", label_column, image_column)


def read_images(
    where: str | Path, split: str = "train", *, label_column: str = "", class_names: Sequence[str] = ()
) -> StoredImages:
    """Images wherever and however they lie: `where` is looked at, and the reader that fits is called.

    Args:
        where: A folder per class; a folder with `train/`, `test/` or `val/` of class folders; a folder with
            `train*.parquet` or `data/train-*.parquet` and so on; a parquet file; a `.csv` or `.txt` list,
            its paths relative to its own folder; or the id `owner/name` of a Hugging Face data set.
        split: `train`, `validation` or `test`. Images that have no splits are read whole.
        label_column: The column of labels in a table or CSV file.
        class_names: The name of every class that the indices of a list stand for.

    Raises:
        FileNotFoundError: If there is nothing there, or images are missing.
        ValueError: If there is no such split, or the images cannot be read.
    """
    splits = find_splits(where, label_column=label_column, class_names=class_names)
    chosen = WHOLE if list(splits) == [WHOLE] else split
    if chosen not in splits:
        raise ValueError(f"Expected {where} to have a split {split!r}, but it has {', '.join(splits)}.")
    return splits[chosen]()


def find_splits(
    where: str | Path, *, label_column: str = "", class_names: Sequence[str] = ()
) -> dict[str, Callable[[], StoredImages]]:
    """What `read_images` can read: `train`, `validation`, `test` → its reader, or `all` where there are none.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If it is nothing that can be read.
    """
    path = Path(where)
    if path.is_dir():
        if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
            return _hub_splits(str(path), label_column)
        names = _subfolders(path)
        folders = {SPLITS[name.lower()]: path / name for name in names if name.lower() in SPLITS}
        if "train" in folders and _subfolders(folders["train"]):
            return {split: partial(read_folder, folder) for split, folder in folders.items()}
        if len(folders) == len(names) and any(_subfolders(folder) for folder in folders.values()):
            raise ValueError(
                f"Expected a folder train of class folders in {path}, but it has {', '.join(names)}."
            )
        return {WHOLE: partial(read_folder, path)}
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return {WHOLE: partial(read_parquet, path, label_column=label_column)}
        if path.suffix.lower() in (".csv", ".txt"):
            reader = partial(
                read_list, path, root=path.parent, class_names=class_names, label_column=label_column
            )
            return {WHOLE: reader}
        raise ValueError(f"Expected a .parquet, .csv or .txt file, but got {path}.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(where)):
        return _hub_splits(str(where), label_column)
    raise FileNotFoundError(
        "Expected a folder, a .parquet, .csv or .txt file or the id of a Hugging Face data set, "
        f"but there is no {where}."
    )


class _PathBlock:
    """Paths while they are collected, as `ImageFiles` keeps them."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._ends = array("q")

    def append(self, path: bytes) -> None:
        self._paths += path
        self._ends.append(len(self._paths))

    def below(self, root: Path) -> ImageFiles:
        return ImageFiles(root, bytes(self._paths), np.array(self._ends, dtype=np.int64))


def _stored(
    store: ImageFiles | ImageTable, labels: Sequence[int] | IntArray, class_names: Sequence[str]
) -> StoredImages:
    classes = torch.from_numpy(np.array(labels, dtype=np.int64))
    return StoredImages(store, torch.arange(len(classes)), classes, tuple(class_names))


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of images, but there is no folder {folder}.")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images_below(root: Path, class_name: str) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root / class_name, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield f"{below}/{name}"


def _text_rows(file: Path) -> Iterator[tuple[int, bytes, str]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            parts = line.strip().rsplit(None, 1)
            if len(parts) == 2:
                yield number, parts[0].encode("utf-8", "surrogateescape"), parts[1]
            elif parts:
                raise ValueError(
                    f"Expected lines `path label`, but line {number} of {file} is {_short(parts[0])}."
                )


def _csv_rows(file: Path, label_column: str) -> Iterator[tuple[int, bytes, str]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            first = next(rows, [])
            is_header = not any(cell.strip().lower().endswith(IMAGE_ENDINGS) for cell in first)
            path_at, label_at = _columns(file, first if is_header else [], label_column)
            for row in rows if is_header else chain([first], rows):
                if row and len(row) <= max(path_at, label_at):
                    raise ValueError(
                        f"Expected columns path and label, but line {rows.line_num} of {file} is "
                        f"{_short(','.join(row))}."
                    )
                if row:
                    yield rows.line_num, os.fsencode(row[path_at].strip()), row[label_at].strip()
        except csv.Error as error:
            raise ValueError(
                f"Expected a CSV file, but line {rows.line_num} of {file} is not CSV ({error})."
            ) from error


def _columns(file: Path, header: Sequence[str], label_column: str) -> tuple[int, int]:
    """Where a CSV file has the paths and where the labels."""
    names = [name.strip() for name in header]
    if label_column and label_column not in names:
        raise ValueError(
            f"Expected a column {label_column!r} in {file}, but its header is {','.join(names) or 'missing'}."
        )
    label = label_column or "label"
    if names and len(names) > 2 and not (label in names and any(name in names for name in _PATH_COLUMNS)):
        raise ValueError(
            f"Expected a column {label!r} (or its name as `label_column`) and one of "
            f"{', '.join(_PATH_COLUMNS)} in {file}, but its header is {','.join(names)}."
        )
    label_at = names.index(label) if label in names else 1
    path_at = next((names.index(name) for name in _PATH_COLUMNS if name in names), int(label_at == 0))
    return path_at, label_at


def _is_index(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _look_up(
    label_of: Callable[[str], int], found: Sequence[str], lines: Sequence[int], file: Path
) -> IntArray:
    """The label of each row of a list; the first that has none is named by its line."""
    labels = array("q")
    try:
        labels.extend(map(label_of, found))
    except (ValueError, KeyError, OverflowError) as error:
        row = len(labels)
        raise ValueError(
            f"Expected a {'known class' if isinstance(error, KeyError) else 'class index'} as label, "
            f"but line {lines[row]} of {file} has {_short(found[row])}."
        ) from error
    return np.array(labels, dtype=np.int64)


def _check_files(store: ImageFiles, file: Path) -> None:
    """Look for all images by listing each folder once: much quicker than asking for each file."""
    if not store.root.is_dir():
        raise FileNotFoundError(
            f"Expected the images of {file} below a folder, but there is no {store.root}."
        )
    wanted: defaultdict[bytes, bytearray] = defaultdict(bytearray)
    for path in store:
        start = path.rfind(b"/") + 1
        wanted[path[:start]].extend(path[start:] + b"/")
    missing: set[bytes] = set()
    for folder, names in wanted.items():
        listed = _names_in(os.path.join(os.fsencode(store.root), folder))
        missing.update(folder + name for name in set(bytes(names[:-1]).split(b"/")).difference(listed))
    if missing:
        absent = [os.fsdecode(path) for path in store if path in missing]
        there = len(store) - len(absent)
        raise FileNotFoundError(
            f"Expected the {len(store):,} images of {file} below {store.root}, "
            f"but {f'only {there:,} of them are' if there else 'none of them is'} there; "
            f"missing: {_some(absent)}."
        )


def _names_in(folder: bytes) -> list[bytes]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _hub_splits(name: str, label_column: str) -> dict[str, Callable[[], StoredImages]]:
    from datasets import get_dataset_split_names

    try:
        splits = get_dataset_split_names(name)
    except Exception as error:  # of `datasets`, its hub client or pyarrow
        raise _no_data_set(name, error) from error
    return {
        SPLITS.get(split, split): partial(read_hub, name, split, label_column=label_column)
        for split in splits
    }


def _no_data_set(name: str, error: Exception) -> ValueError:
    there = "" if Path(name).exists() else "there is no such path, and "
    return ValueError(
        f"Expected a path or a Hugging Face data set, but got {name}: "
        f"{there}`datasets` says: {_first_line(error)}"
    )


def _from_table(table: Any, title: str, label_column: str, image_column: str) -> StoredImages:
    """The images and labels of a Hugging Face `Dataset`."""
    from datasets import ClassLabel, Image

    features = table.features
    if not image_column:
        encoded = [name for name, feature in features.items() if _holds_images(feature)]
        image_column = _only(encoded, "image_column", "of images, {bytes, path},", title, features)
    elif image_column not in features or not _holds_images(features[image_column]):
        raise _no_column("image_column", image_column, "of images, {bytes, path},", title, features)
    if not label_column:
        classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        whole = [name for name, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
        label_column = _only(classes or whole, "label_column", "of labels", title, features)
    elif label_column not in features:
        raise _no_column("label_column", label_column, "of labels", title, features)

    found = table.data.column(label_column)
    if found.null_count:
        row = found.is_null().to_pylist().index(True)
        raise ValueError(f"Expected a label for every image, but {title} row {row} has none.")
    found = found.to_numpy()
    class_names = getattr(features[label_column], "names", None)
    if found.dtype.kind not in "iu":
        class_names, found = np.unique(found.astype(str), return_inverse=True)
    if len(found) == 0:
        raise ValueError(f"Expected images in {title}, but it has no row.")
    if class_names is None:
        class_names = range(int(found.max()) + 1)
    outside = np.flatnonzero((found < 0) | (found >= len(class_names)))
    if len(outside):
        raise ValueError(
            f"Expected labels between 0 and {len(class_names) - 1}, "
            f"but {title} row {outside[0]} has {found[outside[0]]} in column {label_column!r}."
        )
    images = table.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return _stored(ImageTable(images, image_column, title), found, [str(name) for name in class_names])


def _holds_images(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _only(names: Sequence[str], argument: str, what: str, title: str, features: Iterable[str]) -> str:
    if len(names) == 1:
        return names[0]
    found = f"{len(names)}, {_some(names)}: name one by `{argument}`" if names else "none"
    raise ValueError(
        f"Expected one column {what} in {title}, but its columns {_some(list(features))} have {found}."
    )


def _no_column(argument: str, name: str, what: str, title: str, features: Iterable[str]) -> ValueError:
    return ValueError(
        f"Expected `{argument}` to be a column {what} of {title}, but got {name!r}; "
        f"its columns are {_some(list(features))}."
    )


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(map(str, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN:,} more"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
