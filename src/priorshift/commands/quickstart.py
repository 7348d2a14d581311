"""The main job on real images: train three methods on skewed digits, judge them on eleven class mixes."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from priorshift import recipes
from priorshift.commands._runs import complete_runs
from priorshift.evaluation import compare, oracle_gaps_by_method
from priorshift.predictions import Predictions
from priorshift.report import comparison_table, console, write_report
from priorshift.training import Run, TrainConfig

RECIPES = ("digits_softmax", "digits_balanced_softmax", "digits_lade")


@dataclass(frozen=True)
class Arguments:
    """How many seeds, and where to."""

    output: Annotated[Path, arg(aliases=("-o",))] = Path("runs/quickstart")
    """Folder for the runs and the report. Runs that are complete there are kept, others trained again."""
    seeds: int = 3
    """Trainings of each method; the spread is over them."""
    device: str = "cpu"
    """The networks are so small that a CPU is quickest; `auto` takes a GPU where there is one."""


def run(arguments: Arguments) -> None:
    """Train what is missing, predict once per run, then read the saved predictions alone."""
    if arguments.seeds < 1:
        raise ValueError(f"Expected `seeds` to be at least 1, but got {arguments.seeds}.")
    started = time.perf_counter()
    screen = Console()
    configs: dict[str, TrainConfig] = {
        f"{recipe.replace('_', '-')}-seed{seed}": replace(
            getattr(recipes, recipe)(), seed=seed, device=arguments.device
        )
        for recipe in RECIPES
        for seed in range(arguments.seeds)
    }
    complete_runs(configs, arguments.output, screen, splits=("validation", "test"))
    validations, runs = (
        [Predictions.load(Run(arguments.output / name).predictions_file(split)) for name in configs]
        for split in ("validation", "test")
    )
    screen.print(console(comparison_table(compare(runs))))
    page = write_report(
        runs,
        arguments.output / "report.html",
        title="Quickstart: skewed digits, eleven class mixes",
        facts={"command": "priorshift quickstart"},
        oracle_gaps=oracle_gaps_by_method(list(zip(runs, validations, strict=True))),
    )
    seconds = time.perf_counter() - started
    screen.print(f"report: {page}  ({seconds:.0f} s in all)", soft_wrap=True, highlight=False)
