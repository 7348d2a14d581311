"""Labelled images that stay on disk and are decoded one at a time."""

import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from priorshift.data._images import ImageSet
from priorshift.priors import count_labels
from priorshift.shift import fingerprint

if TYPE_CHECKING:
    import PIL.Image

_CHECKING_THREADS = 4
_LOGGER = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image that is missing, truncated or of no known format, named."""


@runtime_checkable
class ImageStore(Protocol):
    """Encoded images, one per row. It is opened anew for each image, so that processes can share it."""

    def name(self, row: int) -> str:
        """What to call an image in a message, the same on every machine."""
        ...

    def encoded(self, row: int) -> str | io.BytesIO:
        """The image's file: its path, or its bytes."""
        ...


class ImageFiles:
    """Image files below a root, their paths in one block of memory whatever their number.

    Args:
        root: The folder that the paths are relative to.
        paths: All paths, one after the other, as the file system encodes them.
        ends: Where each path ends in `paths`, `[N]`.
    """

    def __init__(self, root: Path, paths: bytes, ends: Int[np.ndarray, " n"]) -> None:
        self.root = root
        self._paths = paths
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends.tolist():
            yield self._paths[start:end]
            start = end

    def name(self, row: int) -> str:
        """The path of an image relative to the root."""
        return os.fsdecode(self._paths[self._ends[row - 1] if row else 0 : self._ends[row]])

    def encoded(self, row: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, self.name(row))


class ImageTable:
    """Encoded images in a column of a Hugging Face `Dataset`, which stays on disk as Arrow.

    Args:
        table: The data set; the column holds `{bytes, path}`, not decoded.
        column: The column of images.
        title: The file or data set, for messages.
    """

    def __init__(self, table: Any, column: str, title: str) -> None:
        self._table = table
        self._column = column
        self._title = title

    def name(self, row: int) -> str:
        """The file and the row in it, counted from 0."""
        return f"{self._title} row {row}"

    def encoded(self, row: int) -> str | io.BytesIO:
        """The bytes of an image, or its path where the table holds no bytes."""
        image = self._table[row][self._column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise ValueError("there is neither an image nor a path")
        return image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Labelled images on disk, read one at a time.

    An image's hash is that of its *name*: its path relative to the root, as a list has it, or its file and
    row. So subsets and held-out splits are pinned by the names, and a file whose pixels change keeps its
    place. (`ImageSet.hashes` are of the pixels.)

    It holds arrays alone, so it costs little to send to the worker processes of a `DataLoader`.

    Args:
        store: Where the images are.
        rows: The row of each image in the store, `[N]`.
        labels: Class indices, `[N]`.
        class_names: One name per class.

    Raises:
        ValueError: If the parts do not fit together or a label is out of range.
    """

    store: ImageStore
    rows: Int[Tensor, " samples"]
    labels: Int[Tensor, " samples"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.labels.shape != self.rows.shape:
            raise ValueError(
                f"Expected `labels` with one entry per image, {tuple(self.rows.shape)}, "
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
        """The number of channels of an image: every image is read as RGB."""
        return 3

    @cached_property
    def hashes(self) -> list[str]:
        """The hash of each image's name, `N` of them."""
        names = (os.fsencode(self.store.name(row)) for row in self.rows.tolist())
        return [blake2b(name, digest_size=16).hexdigest() for name in names]

    @cached_property
    def fingerprint(self) -> str:
        """A short text that is equal for the same labelled names in any order, and for no others."""
        return fingerprint(self.hashes, self.labels)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def subset(self, indices: Int[Tensor, " chosen"] | Int[np.ndarray, " chosen"]) -> "StoredImages":
        """The images of these rows."""
        chosen = torch.as_tensor(indices)
        return StoredImages(self.store, self.rows[chosen], self.labels[chosen], self.class_names)

    def name(self, index: int) -> str:
        """The path of an image relative to the root, or its file and row."""
        return self.store.name(int(self.rows[index]))

    def read(self, index: int) -> "PIL.Image.Image":
        """An image, decoded, as RGB.

        Raises:
            UnreadableImageError: If it cannot be decoded, naming it.
        """
        return self._read(index, lambda image: None)

    def check(self, limit: int = 2048) -> None:
        """Decode images spread evenly over the set, before a run begins, so that a broken one shows.

        JPEGs are decoded at an eighth of their size, which is quick and finds truncation all the same.

        Args:
            limit: The most images to decode.

        Raises:
            UnreadableImageError: For the first image that cannot be decoded.
        """
        checked = min(limit, len(self))
        indices = torch.arange(checked) * len(self) // max(checked, 1)
        with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
            for error in threads.map(self._unreadable, indices.tolist()):
                if error is not None:
                    raise error

    def readable(self) -> "StoredImages":
        """The images that can be decoded; a warning is logged for each that cannot."""
        with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
            errors = list(threads.map(self._unreadable, range(len(self))))
        for error in filter(None, errors):
            _LOGGER.warning("%s It is left out.", error)
        return self.subset(torch.tensor([error is None for error in errors]).nonzero().flatten())

    def in_memory(self) -> ImageSet:
        """All images, decoded, as one tensor.

        Raises:
            UnreadableImageError: For the first image that cannot be decoded.
            ValueError: If the images are not all of one size.
        """
        height, width = self.read(0).size[::-1] if len(self) else (1, 1)
        images = torch.empty((len(self), 3, height, width), dtype=torch.uint8)
        for index in range(len(self)):
            image = self.read(index)
            if image.size != (width, height):
                raise ValueError(
                    f"Expected images of one size, {width} × {height} as {self.name(0)}, "
                    f"but got {image.width} × {image.height} for {self.name(index)}."
                )
            images[index] = torch.from_numpy(np.array(image)).movedim(-1, 0)
        return ImageSet(images, self.labels, self.class_names)

    def _unreadable(self, index: int) -> UnreadableImageError | None:
        """What is wrong with an image, if anything. A JPEG is decoded at an eighth of its size."""
        try:
            self._read(
                index,
                lambda image: image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1))),
            )
        except UnreadableImageError as error:
            return error
        return None

    def _read(self, index: int, prepare: Callable[["PIL.Image.Image"], object]) -> "PIL.Image.Image":
        from PIL import Image

        try:
            with Image.open(self.store.encoded(int(self.rows[index]))) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of mode {image.mode}, which RGB cannot hold")
                prepare(image)
                return image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise UnreadableImageError(
                f"Expected an image that can be read, but got {self.name(index)} ({error})."
            ) from error
