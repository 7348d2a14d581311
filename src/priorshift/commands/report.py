"""Compare runs on the eleven standard class mixes in one self-contained HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from priorshift.evaluation import OracleGap


@dataclass(frozen=True)
class Arguments:
    """Which runs, and where the page goes."""

    runs: Positional[tuple[Path, ...]]
    """Run folders (their test predictions are read) or predictions files, all of one test set. Where all are
    run folders with validation predictions, the page also shows the accuracy gap between an estimated and the
    true class mix."""
    output: Annotated[Path, arg(aliases=("-o",))] = Path("report.html")
    """The page to write."""
    title: str = "Class mixes compared"
    """Its title."""


def run(arguments: Arguments) -> None:
    """Print the table and write the page."""
    from rich.console import Console

    from priorshift.evaluation import compare, oracle_gaps_by_method
    from priorshift.predictions import Predictions
    from priorshift.report import comparison_table, console, write_report

    if not arguments.runs:
        raise ValueError("Expected at least one run folder or predictions file.")
    for path in arguments.runs:
        if path.is_dir() and not _of_run(path, "test").is_file():
            raise FileNotFoundError(f"{path} has no test predictions; run `priorshift predict {path}` first.")
    runs = [Predictions.load(_of_run(path, "test") if path.is_dir() else path) for path in arguments.runs]
    Console().print(console(comparison_table(compare(runs))))
    held_out = [_of_run(path, "validation") for path in arguments.runs if path.is_dir()]
    gaps: dict[str, dict[str, list[OracleGap]]] = {}
    if len(held_out) == len(runs) and all(file.is_file() for file in held_out):
        gaps = oracle_gaps_by_method(list(zip(runs, map(Predictions.load, held_out), strict=True)))
    print(write_report(runs, arguments.output, title=arguments.title, oracle_gaps=gaps))


def _of_run(folder: Path, split: str) -> Path:
    """The predictions of a run folder, as `priorshift.training.Run` names them, which needs torch."""
    return folder / f"predictions-{split}.safetensors"
