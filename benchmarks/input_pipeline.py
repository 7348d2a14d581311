"""Images a second: stored images against a bare torch DataLoader, batched augmentation against per-image.

    python -m benchmarks.input_pipeline

Both sides of a pair are timed in turns, in one process, on generated photographs (noise of photographic
smoothness, JPEG quality 90), and compared by the median of the ratios of neighbouring rounds.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from priorshift.data import Augmentation, Batch, ImageSet, Preparation, feed, read_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CPU = torch.device("cpu")


def draw_photographs(folder: Path, count: int, *, width: int = 500, height: int = 375) -> None:
    """JPEGs of ImageNet's usual size in two class folders."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        file = folder / f"class{number % 2}" / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, "JPEG", quality=90)


class Bare(Dataset):
    """What a PyTorch user writes: open, convert, transform to a normalised float tensor."""

    def __init__(self, files: list[str], transform: Callable) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row]) as image:
            return self.transform(image.convert("RGB"))


def in_turns(ours: Callable[[], int], theirs: Callable[[], int], rounds: int) -> tuple[float, float, float]:
    """Images a second of both, and the median ratio of ours to theirs over neighbouring rounds."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        for name, job in (
            (("ours", ours), ("theirs", theirs)) if turn % 2 else (("theirs", theirs), ("ours", ours))
        ):
            started = time.perf_counter()
            images = job()
            if turn:  # the first round warms up
                rates[name].append(images / (time.perf_counter() - started))
    ratios = [mine / other for mine, other in zip(rates["ours"], rates["theirs"], strict=True)]
    return statistics.median(rates["ours"]), statistics.median(rates["theirs"]), statistics.median(ratios)


def stored(folder: Path, workers: int, rounds: int) -> tuple[float, float, float]:
    data = read_folder(folder)
    files = [str(folder / data.name(row)) for row in range(len(data))]
    images = feed(
        data,
        CPU,
        preparation=Preparation(size=224, resize=256, mean=MEAN, std=STD),
        augmentation=Augmentation(crop="random-resized", flip=True, jitter=0.4),
        workers=workers,
    )
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(Bare(files, transform), batch_size=64, shuffle=True, num_workers=workers)

    def ours() -> int:
        rows = list(torch.split(torch.randperm(len(data)), 64))
        batches = [Batch.whole(chosen, seed) for seed, chosen in enumerate(rows)]
        return sum(len(batch) for batch in images.training(batches))

    return in_turns(ours, lambda: sum(len(batch) for batch in loader), rounds)


def in_memory(count: int, rounds: int, device: torch.device) -> tuple[float, float, float]:
    """CIFAR's augmentation: our batches on the device against per-image transforms in two workers."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(pixels, torch.zeros(count).long(), ("a",))
    images = feed(
        data,
        device,
        preparation=Preparation(mean=CIFAR_MEAN, std=CIFAR_STD),
        augmentation=Augmentation(shift=4, flip=True),
    )
    transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CIFAR_MEAN, CIFAR_STD),
        ]
    )
    pictures = [Image.fromarray(image.movedim(0, -1).numpy()) for image in pixels]

    class PerImage(Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, row: int) -> torch.Tensor:
            return transform(pictures[row])

    loader = DataLoader(PerImage(), batch_size=256, shuffle=True, num_workers=2)

    def ours() -> int:
        rows = list(torch.split(torch.randperm(count), 256))
        batches = [Batch.whole(chosen, seed) for seed, chosen in enumerate(rows)]
        total = sum(len(batch) for batch in images.training(batches))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return total

    def theirs() -> int:
        return sum(len(batch.to(device)) for batch in loader)

    return in_turns(ours, theirs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        draw_photographs(Path(folder), arguments.photographs)
        for workers in (0, 2):
            rates = stored(Path(folder), workers, arguments.rounds)
            lines.append((f"photographs 500 × 375, crop, flip, jitter; {workers} workers", *rates))
    devices = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        rates = in_memory(10_000, arguments.rounds, device)
        lines.append((f"32 × 32 in memory on {device.type}: batched shift and flip", *rates))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{os.cpu_count()} CPU cores ({platform.machine()}), {versions}")
    print("\n| Input | Ours, images/s | Bare DataLoader, images/s | Ratio |\n| :--- | ---: | ---: | ---: |")
    for name, ours, theirs, ratio in lines:
        print(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
