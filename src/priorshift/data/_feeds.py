"""How images reach the device in batches: from memory, from disk, or as features that are ready."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from priorshift.data._augmentation import Moves
from priorshift.data._features import FeatureSet
from priorshift.data._images import ImageSet
from priorshift.data._preparation import Augmentation, Preparation
from priorshift.data._stored import StoredImages

PLAIN = Augmentation()


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a training batch.

    Args:
        rows: Rows of the data, `[B]`.
        places: Where they stand in the whole batch, `[B]`.
        size: Number of images of the whole batch.
        seed: From which all randomness of the batch derives: an image is augmented by its place.
        counted: Whether the loss counts these images; not where a process without a share sees one.
    """

    rows: Int[Tensor, " share"]
    places: Int[Tensor, " share"]
    size: int
    seed: int
    counted: bool = True

    @classmethod
    def whole(cls, rows: Int[Tensor, " batch"], seed: int) -> "Batch":
        """The batch of one process alone."""
        return cls(rows, torch.arange(len(rows)), len(rows), seed)


@runtime_checkable
class Feed(Protocol):
    """Batches of network inputs from one set of images, float32, on the device."""

    def training(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """The inputs of each batch, augmented: a pure function of the images and the batch's seed."""

    def plain(self, batch_size: int, share: slice = slice(None)) -> Iterator[Tensor]:
        """The inputs of all images in order, or of a share of them, as they are seen at test time."""


def feed(
    data: ImageSet | StoredImages | FeatureSet,
    device: torch.device,
    *,
    preparation: Preparation,
    augmentation: Augmentation = PLAIN,
    workers: int = 0,
) -> Feed:
    """The feed of a set of images.

    Images in memory live on the device as uint8 and are prepared there, a batch at a time. Stored images are
    decoded, cut and augmented one at a time by workers and normalised on the device.

    Args:
        data: The images, or features, which take neither preparation nor augmentation.
        device: Where the inputs are wanted.
        preparation: What is done to every image.
        augmentation: What is done to training images.
        workers: Processes that read stored images, no more than there are cores; 0 reads them in this one.

    Raises:
        ValueError: If the preparation or the augmentation is none for images of this kind.
    """
    if isinstance(data, FeatureSet):
        return _FeatureFeed(data, device, preparation, augmentation)
    if isinstance(data, ImageSet):
        return _MemoryFeed(data, device, preparation, augmentation)
    return _StoredFeed(data, device, preparation, augmentation, workers)


def _on_device(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Many small tensors on the device, by one transfer."""
    sizes = [len(part) for part in parts]
    return torch.split(torch.cat(list(parts)).to(device), sizes) if parts else ()


class _FeatureFeed:
    def __init__(
        self, data: FeatureSet, device: torch.device, preparation: Preparation, augmentation: Augmentation
    ) -> None:
        if preparation != Preparation() or augmentation != PLAIN:
            raise ValueError(
                "Expected no `preparation` and no `augmentation` of features, which are ready as they are, "
                f"but got {preparation} and {augmentation}."
            )
        self._features = data.features.to(device)
        self._device = device

    def training(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        rows = _on_device([batch.rows for batch in batches], self._device)
        return (self._features[chosen] for chosen in rows)

    def plain(self, batch_size: int, share: slice = slice(None)) -> Iterator[Tensor]:
        return iter(torch.split(self._features[share], batch_size))


class _MemoryFeed:
    def __init__(
        self, data: ImageSet, device: torch.device, preparation: Preparation, augmentation: Augmentation
    ) -> None:
        if augmentation.crop != "centre" or augmentation.jitter:
            raise ValueError(
                "Expected no `crop` and no `jitter` of images in memory, whose augmentations are `shift` and "
                f"`flip`, but got {augmentation.crop!r} and {augmentation.jitter}."
            )
        if preparation.resize not in (0, preparation.size):
            raise ValueError(
                "Expected no `resize` beyond `size` for images in memory, which are only scaled to `size`, "
                f"but got {preparation.resize}."
            )
        self._images = data.images.to(device)
        self._size = preparation.size
        self._normalise = _normaliser(preparation, data.channels, data.white, device)
        self._augmentation = augmentation
        self._device = device

    def training(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        shift, flip = self._augmentation.shift, self._augmentation.flip
        tables = []
        for batch in batches:
            moves = Moves.draw(batch.size, shift=shift, flip=flip, seed=batch.seed)
            drawn = torch.stack((moves.mirrored, moves.top, moves.left))[:, batch.places]
            tables.append(torch.cat((batch.rows.unsqueeze(0), drawn)).T)
        for table in _on_device(tables, self._device):
            rows, mirrored, top, left = table.unbind(1)
            images = self._images[rows]
            if shift or flip:
                images = Moves(mirrored.bool(), top, left, shift).of(images)
            yield self._inputs(images)

    def plain(self, batch_size: int, share: slice = slice(None)) -> Iterator[Tensor]:
        return (self._inputs(batch) for batch in torch.split(self._images[share], batch_size))

    def _inputs(self, images: UInt8[Tensor, "batch channels height width"]) -> Tensor:
        if not self._size:
            return self._normalise(images)
        shape = (self._size, self._size)
        scaled = F.interpolate(images.to(torch.float32), size=shape, mode="bilinear", antialias=True)
        return self._normalise(scaled)


class _StoredFeed:
    def __init__(
        self,
        data: StoredImages,
        device: torch.device,
        preparation: Preparation,
        augmentation: Augmentation,
        workers: int,
    ) -> None:
        if not preparation.size:
            raise ValueError(
                "Expected `size` to be positive for stored images, which differ in size, but got 0."
            )
        if augmentation.shift:
            raise ValueError(
                "Expected no `shift` of stored images, whose augmentations are `crop`, `flip` and `jitter`, "
                f"but got {augmentation.shift}."
            )
        self._data = data
        self._device = device
        normalise = _normaliser(preparation, data.channels, 255, device)
        on_cpu = device.type == "cpu"  # elsewhere bytes travel, a quarter of what floats are
        self._in_worker = normalise if on_cpu else _as_it_is
        self._on_device = _as_it_is if on_cpu else normalise
        self._preparation = preparation
        self._augmentation = augmentation
        self._workers = workers

    def training(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        images = [
            [
                (row, batch.seed + place)
                for row, place in zip(batch.rows.tolist(), batch.places.tolist(), strict=True)
            ]
            for batch in batches
        ]
        return self._inputs(images, self._augmentation)

    def plain(self, batch_size: int, share: slice = slice(None)) -> Iterator[Tensor]:
        rows = torch.split(torch.arange(len(self._data))[share], batch_size)
        return self._inputs([[(row, 0) for row in batch.tolist()] for batch in rows if len(batch)], PLAIN)

    def _inputs(self, images: list[list[tuple[int, int]]], augmentation: Augmentation) -> Iterator[Tensor]:
        loader: DataLoader[Tensor] = DataLoader(
            _Decoded(self._data, _transform(self._preparation, augmentation), self._in_worker),
            batch_sampler=images,
            num_workers=min(self._workers, os.cpu_count() or 1),
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # its default would draw from the global one
        )
        for decoded in loader:
            yield self._on_device(decoded.to(self._device, non_blocking=True))


def _as_it_is(images: Tensor) -> Tensor:
    return images


class _Decoded(Dataset[Tensor]):
    """Stored images by (row, seed), decoded and transformed."""

    def __init__(
        self, data: StoredImages, transform: Callable[..., Tensor], finish: Callable[[Tensor], Tensor]
    ) -> None:
        self._data = data
        self._transform = transform
        self._finish = finish

    def __getitem__(self, place: tuple[int, int]) -> Num[Tensor, "3 size size"]:
        row, seed = place
        image = self._data.read(row)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            transformed = self._transform(image)
        return self._finish(transformed)


def _transform(preparation: Preparation, augmentation: Augmentation) -> Callable[..., Tensor]:
    from torchvision.transforms import v2

    size, resize = preparation.size, preparation.resize or preparation.size
    steps = {
        "centre": (v2.Resize(resize), v2.CenterCrop(size)),
        "random": (v2.Resize(resize), v2.RandomCrop(size)),
        "random-resized": (v2.RandomResizedCrop(size),),
    }[augmentation.crop]
    if augmentation.flip:
        steps = (*steps, v2.RandomHorizontalFlip())
    if augmentation.jitter:
        steps = (*steps, v2.ColorJitter(*(augmentation.jitter,) * 3))
    transform: Callable[..., Tensor] = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def _normaliser(
    preparation: Preparation, channels: int, white: int, device: torch.device
) -> Callable[[Tensor], Float[Tensor, "*batch channels height width"]]:
    """From pixels up to `white` to normalised float32: one pass over fresh memory, then in place."""
    if not preparation.mean:
        return lambda pixels: pixels.to(torch.float32, copy=True).div_(white)
    if len(preparation.mean) != channels:
        raise ValueError(
            f"Expected `mean` with one entry per channel, {channels}, but got {preparation.mean}."
        )
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(-1, 1, 1) for each in (preparation.mean, preparation.std)
    )
    scale, offset = ((1 / (white * std)).to(device, torch.float32), (-mean / std).to(device, torch.float32))
    return lambda pixels: pixels.to(torch.float32, copy=True).mul_(scale).add_(offset)
