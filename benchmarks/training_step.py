"""A step of the training loop against a bare loop written by hand: same model, batch, optimizer and schedule.

    python -m benchmarks.training_step

Both are timed in turns in one process and compared by the median of the ratios of neighbouring rounds. The
bare loop does what a step needs and nothing else: no seeds, checkpoints, records or signals.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from priorshift import recipes
from priorshift.data import ImageSet, Splits
from priorshift.training import Augmentation, Optimizer, Part, Stage, TrainConfig, build, loop, train


def made_up(size: int, channels: int, count: int, classes: int) -> Splits:
    """Random images; no validation split, so that an epoch is its steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    data = ImageSet(images, labels, tuple(map(str, range(classes))))
    return Splits(data, data.subset(torch.empty(0, dtype=torch.int64)), data)


def bare_loop(config: TrainConfig, splits: Splits) -> float:
    """Seconds that the steps of a run take."""
    data, device = splits.train, torch.device(config.device)
    model = build.build_model(config, data).to(device).train()
    images, labels = data.images.to(device), data.labels.to(device)
    settings = config.stages[0].optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay
    )
    total = config.stages[0].epochs * math.ceil(len(data) / config.batch_size)
    started, step = time.perf_counter(), 0
    for _ in range(config.stages[0].epochs):
        for batch in torch.randperm(len(data)).split(config.batch_size):
            rows = batch.to(device)
            optimizer.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = F.cross_entropy(model(images[rows].float() / 255), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    loss.item()
    return time.perf_counter() - started


def our_loop(config: TrainConfig, splits: Splits) -> float:
    """Seconds that the epochs of the same run take, their records included."""
    loop.load_data = lambda part: splits
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), on_epoch=lambda record: seconds.append(record["train_seconds"]))
    return sum(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = replace(
        recipes.digits_softmax(),
        augmentation=Augmentation(),
        device=arguments.device,
        stages=(
            Stage(
                loss=Part(name="cross-entropy"), epochs=20, optimizer=Optimizer(lr=0.05, weight_decay=1e-4)
            ),
        ),
    )
    cases = {
        "small-cnn, 8 × 8, batch 64": (plain, made_up(8, 1, 1280, 10)),
        "resnet32, 32 × 32, batch 32": (
            replace(
                plain,
                model=Part(name="resnet32"),
                batch_size=32,
                stages=(replace(plain.stages[0], epochs=1),),
            ),
            made_up(32, 3, 320, 10),
        ),
    }
    print(f"{os.cpu_count()} CPU cores ({platform.machine()}), one thread, torch {torch.__version__}")
    print("\n| Case | Ours, ms a step | Bare, ms a step | Ratio |\n| :--- | ---: | ---: | ---: |")
    for name, (config, splits) in cases.items():
        steps = config.stages[0].epochs * math.ceil(len(splits.train) / config.batch_size)
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for turn in range(arguments.rounds + 1):
            for key, job in (("ours", our_loop), ("bare", bare_loop))[:: 1 if turn % 2 else -1]:
                seconds = job(config, splits)
                if turn:  # the first round warms up
                    times[key].append(1000 * seconds / steps)
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True))
        ours, bare = (statistics.median(times[key]) for key in ("ours", "bare"))
        print(f"| {name} | {ours:.2f} | {bare:.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
