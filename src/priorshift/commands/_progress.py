"""Progress of trainings: one updating line on a terminal, a few plain lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 5.0


def describe(record: dict[str, Any]) -> str:
    """The record of an epoch in one line."""
    return (
        f"epoch {record['epoch']:>3}/{record['epochs']}  loss {record['loss']:7.4f}  "
        f"validation {100 * record['validation_balanced_accuracy']:5.1f} %"
    )


class TrainingProgress:
    """Told of each epoch of each of several runs; shows how far all of them are."""

    def __init__(self, console: Console, num_runs: int) -> None:
        self._console = console
        self._num_runs = num_runs
        self._done = 0
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console
            )
            self._task = self._bar.add_task("starting", total=float(num_runs))

    def epoch(self, name: str, record: dict[str, Any]) -> None:
        """An epoch of the current run is over."""
        text = f"[{self._done + 1}/{self._num_runs}] {name}  {describe(record)}"
        if self._bar is not None:
            share = record["epoch"] / record["epochs"]
            self._bar.update(self._task, description=_plain(text), completed=self._done + share)
        elif time.monotonic() - self._last >= LOG_EVERY_SECONDS:
            self._last = time.monotonic()
            self._say(text)

    def run_done(self, name: str, outcome: str) -> None:
        """The current run is over."""
        self._done += 1
        self._say(f"[{self._done}/{self._num_runs}] {name}  {outcome}")
        if self._bar is not None:
            self._bar.update(self._task, completed=float(self._done))

    def _say(self, text: str) -> None:
        self._console.print(_plain(text), soft_wrap=True)
        sys.stdout.flush()


def _plain(text: str) -> str:
    """Text in which rich finds no markup of its own."""
    return text.replace("[", "\\[")


@contextmanager
def training_progress(console: Console, num_runs: int) -> Iterator[TrainingProgress]:
    """Show progress while the block runs."""
    progress = TrainingProgress(console, num_runs)
    if progress._bar is None:
        yield progress
    else:
        with progress._bar:
            yield progress
