"""Make sure that run folders hold complete runs and their predictions."""

import contextlib
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
    outcome = "complete already"
    if not run.finished(config):
        train(config, folder, on_epoch=partial(progress.epoch, name))
        outcome = "trained and predicted"
    for split in splits:
        with contextlib.suppress(FileNotFoundError, ValueError):
            Predictions.load(run.predictions_file(split))
            continue
        predict(folder, split, device=config.device).save(run.predictions_file(split))
        outcome = outcome if outcome.startswith("trained") else "predicted"
    return (
        outcome if outcome.startswith("complete") else f"{outcome} in {time.perf_counter() - started:.1f} s"
    )
