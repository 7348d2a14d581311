"""Make sure that run folders hold complete runs and their predictions."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from priorshift.commands._progress import TrainingProgress, training_progress
from priorshift.predictions import Predictions
from priorshift.training import Run, TrainConfig, predict, train


def complete_runs(
    configs: Mapping[str, TrainConfig], folder: Path, screen: Console, *, splits: Sequence[str] = ("test",)
) -> None:
    """Train and predict what is missing, one subfolder for each config; what is complete is kept.

    One thread: the networks of these runs are too small for more to pay.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with training_progress(screen, len(configs)) as progress:
            for name, config in configs.items():
                progress.run_done(name, _complete(name, config, folder / name, splits, progress))
    finally:
        torch.set_num_threads(threads)


def _complete(
    name: str, config: TrainConfig, folder: Path, splits: Sequence[str], progress: TrainingProgress
) -> str:
    run, started = Run(folder), time.perf_counter()
    trained = not run.finished(config)
    if trained:
        train(config, folder, on_epoch=partial(progress.epoch, name))
    missing = [split for split in splits if not _readable(run.predictions_file(split))]
    for split in missing:
        predict(folder, split, device=config.device).save(run.predictions_file(split))
    if not missing:
        return "complete already"
    outcome = "trained and predicted" if trained else "predicted"
    return f"{outcome} in {time.perf_counter() - started:.1f} s"


def _readable(file: Path) -> bool:
    try:
        Predictions.load(file)
    except (FileNotFoundError, ValueError):
        return False
    return True
