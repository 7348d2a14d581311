"""Progress of trainings: one updating line on a terminal, a few plain lines in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_SECONDS = 5.0
LOG_STEPS_EVERY_SECONDS = 30.0
BAR_EVERY_SECONDS = 0.2


def describe(record: dict[str, Any]) -> str:
    """The record of an epoch in one line."""
    text = f"epoch {record['epoch']:>3}/{record['epochs']}  loss {record['loss']:7.4f}"
    validation = record["validation_balanced_accuracy"]
    return text if validation is None else f"{text}  validation {100 * validation:5.1f} %"


class TrainingProgress:
    """Told of each epoch of each of several runs; shows how far all of them are."""

    def __init__(self, console: Console, num_runs: int) -> None:
        self._console = console
        self._num_runs = num_runs
        self._done = 0
        self._last = time.monotonic()
        self._begun: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console
            )
            self._task = self._bar.add_task("starting", total=float(num_runs))

    def step(self, name: str, taken: int, total: int) -> None:
        """So many steps of the current run are taken; a few are shown."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (now, taken)
        if now - self._last < (LOG_STEPS_EVERY_SECONDS if self._bar is None else BAR_EVERY_SECONDS):
            return
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done + taken / total)
            return
        began, first = self._begun
        left = (now - began) / max(1, taken - first) * (total - taken)
        self.say(f"[{self._done + 1}/{self._num_runs}] {name}  step {taken:,}/{total:,}  {_time(left)} left")

    def epoch(self, name: str, record: dict[str, Any]) -> None:
        """An epoch of the current run is over."""
        text = f"[{self._done + 1}/{self._num_runs}] {name}  {describe(record)}"
        if self._bar is not None:
            share = record["epoch"] / record["epochs"]
            self._bar.update(self._task, description=_plain(text), completed=self._done + share)
        elif time.monotonic() - self._last >= LOG_EVERY_SECONDS:
            self._last = time.monotonic()
            self.say(text)

    def run_done(self, name: str, outcome: str) -> None:
        """The current run is over."""
        self._done += 1
        self._begun = None
        self.say(f"[{self._done}/{self._num_runs}] {name}  {outcome}")
        if self._bar is not None:
            self._bar.update(self._task, completed=float(self._done))

    def say(self, text: str) -> None:
        """Show a line of its own."""
        self._console.print(_plain(text), soft_wrap=True)
        sys.stdout.flush()


def _time(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    return f"{hours} h {of_hour:02} min" if hours else f"{minutes} min {rest:02} s"


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
