"""Memory and time until the first batch of a list of 1.2 million images.

    python -m benchmarks.list_files

Makes 1,000 folders of 1,200 tiny JPEGs (hard links) and a shuffled list `path label` of them. A fresh process
reads the list, looks for every image, and decodes and resizes a batch of random rows; then it names the list
by its fingerprint, which a run also does. Writes benchmarks/results/list_files.md.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

CLASSES = 1000
PER_CLASS = 1200
BATCH = 256
REPEATS = 3
SIZE = 224
RESULTS = Path(__file__).parent / "results" / "list_files.md"


def make_images(root: Path) -> Path:
    """Every image exists, and is one of its folder's tiny JPEG; the list of them is shuffled."""
    from PIL import Image

    lines = []
    for label in range(CLASSES):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.JPEG"
        Image.new("RGB", (64, 48), (label % 256, 99, 7)).save(first)
        for number in range(PER_CLASS):
            path = folder / f"{folder.name}_{number}.JPEG"
            if number:
                os.link(first, path)
            lines.append(f"train/{folder.name}/{path.name} {label}\n")
    random.Random(0).shuffle(lines)
    file = root / "train.txt"
    file.write_text("".join(lines), encoding="utf-8")
    return file


def measure(file: Path) -> dict[str, float]:
    """Seconds and peak resident MiB of this process, step by step."""
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    started = time.perf_counter()
    import numpy as np
    import PIL.Image  # noqa: F401
    import torch

    from priorshift.data._readers import read_list

    seconds = {"imports": time.perf_counter() - started}
    memory = {"peak of imports": peak()}

    started, worked = time.perf_counter(), time.process_time()
    images = read_list(file, root=file.parent)
    seconds["list"] = time.perf_counter() - started
    started = time.perf_counter()
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:BATCH]
    batch = np.stack([np.asarray(images.read(row).resize((SIZE, SIZE))) for row in rows.tolist()])
    seconds["batch"] = time.perf_counter() - started
    seconds["work"] = time.process_time() - worked
    assert len(images) == CLASSES * PER_CLASS and batch.shape == (BATCH, SIZE, SIZE, 3)
    memory["peak at the batch"] = peak()
    started = time.perf_counter()
    assert len(images.fingerprint) == 16
    seconds["fingerprint"] = time.perf_counter() - started
    return seconds | memory | {"peak at the end": peak()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = make_images(Path(folder))
        command = [sys.executable, "-m", "benchmarks.list_files", str(file)]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(REPEATS)]

    from priorshift.report import Table, markdown

    headers = (
        "run",
        "imports, s",
        "list, s",
        "batch, s",
        "list and batch, s",
        "of these at work, s",
        "fingerprint, s",
        "peak after the imports, MiB",
        "peak at the batch, MiB",
        "peak at the end, MiB",
    )
    rows = tuple(
        (
            str(number),
            f"{run['imports']:.2f}",
            f"{run['list']:.2f}",
            f"{run['batch']:.2f}",
            f"{run['list'] + run['batch']:.2f}",
            f"{run['work']:.2f}",
            f"{run['fingerprint']:.2f}",
            f"{run['peak of imports']:.0f}",
            f"{run['peak at the batch']:.0f}",
            f"{run['peak at the end']:.0f}",
        )
        for number, run in enumerate(runs, start=1)
    )
    caption = (
        f"{CLASSES * PER_CLASS:,} rows over {CLASSES:,} folders, a batch of {BATCH}; each a fresh process. "
        "Peaks are resident memory, imports included. The file system's cache was warm. Time at work is the "
        "processor's; the rest is spent waiting, here for other programs on the same cores."
    )
    table = markdown(Table(headers, rows, caption))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pillow"))
    text = "\n".join(
        [
            "# A list of 1.2 million images: memory and time to the first batch",
            "",
            f"{date.today()}, {platform.machine()} CPU, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, {versions}. Command: `python -m benchmarks.list_files`.",
            "",
            table,
        ]
    )
    print(table)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
