"""What a reproduction yields, and how it is kept: all of its files, or none."""

import csv
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from priorshift import __version__
from priorshift._files import written_whole
from priorshift.report.tables import Table, markdown

Columns: TypeAlias = Mapping[str, Sequence[float | int | str]]
"""A table of numbers: heading → values."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "priorshift",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 100,
}


@dataclass(frozen=True)
class Outcome:
    """A reproduction: the same settings give the same one.

    Attributes:
        title: What was reproduced.
        verdict: Which numbers came out, and whether what the paper claims holds; computed.
        summary: The numbers that the verdict speaks of.
        numbers: Every number of the figure; name → columns.
        figure: The figure.
    """

    title: str
    verdict: str
    summary: Table
    numbers: Mapping[str, Columns]
    figure: Figure

    def save(self, folder: Path, command: str) -> None:
        """Write `figure.svg`, `figure.png`, a CSV for each table of numbers, and `verdict.md`.

        All are rendered and written aside before the first one takes its place.

        Args:
            folder: Made if need be; files of the same names are replaced.
            command: What to type for this outcome.

        Raises:
            OSError: If a file cannot be written.
        """
        contents = {f"{name}.csv": _csv(columns).encode() for name, columns in self.numbers.items()}
        contents["figure.svg"] = self._picture("svg", {"Date": None})
        contents["figure.png"] = self._picture("png", {"Software": None})
        contents["verdict.md"] = self._page(command).encode()
        with ExitStack() as files:
            for name, content in contents.items():
                files.enter_context(written_whole(folder / name)).write_bytes(content)

    def _picture(self, form: str, metadata: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        with drawing():
            self.figure.savefig(file, format=form, metadata=metadata)
        return file.getvalue()

    def _page(self, command: str) -> str:
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "matplotlib"))
        names = ", ".join(f"[`{name}.csv`]({name}.csv)" for name in self.numbers)
        return "\n".join(
            [
                f"# {self.title}",
                "",
                self.verdict,
                "",
                "![The figure.](figure.svg)",
                "",
                markdown(self.summary),
                f"Numbers of the figure: {names}.",
                "",
                f"Command: `{command}`",
                "",
                f"Versions: priorshift {__version__}, Python {platform.python_version()}, {versions}.",
                "",
            ]
        )


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures are made and rendered in the one style, whatever the reader's settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def tidy(ax: Axes) -> None:
    """Take away the lines of a panel that say nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.18, linewidth=0.8)
    ax.set_axisbelow(True)


def holds(claim: bool) -> str:
    """The last words of a sentence on a claim."""
    return "holds" if claim else "does not hold"


def _csv(columns: Columns) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue()
