"""Draw a figure of the papers from runs of your own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from priorshift.report.papers import PAPER_FIGURES

_WIDTH = max(map(len, PAPER_FIGURES))
__doc__ = "\n".join(
    [
        f"{__doc__} NAME is one of",
        "",
        *(f"  {name:<{_WIDTH}}  {one.what} ({one.needs})" for name, one in PAPER_FIGURES.items()),
    ]
)


@dataclass(frozen=True)
class Arguments:
    """Which figure, from which runs, and where it goes."""

    name: Positional[str]
    """Name of the figure."""
    runs: Positional[tuple[Path, ...]]
    """Run folders (their test predictions are read) or predictions files, of one test set."""
    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    """The file, which ends in .svg, .pdf or .png; by default NAME.svg."""


def run(arguments: Arguments) -> None:
    """Draw and write it."""
    from priorshift.report.papers import paper_figure, save_figure

    output = arguments.output or Path(f"{arguments.name}.svg")
    save_figure(paper_figure(arguments.name, arguments.runs), output)
    print(output)
