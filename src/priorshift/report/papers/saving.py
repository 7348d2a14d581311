"""Publication style of figures, and figure files that are reproducible byte for byte."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from priorshift._files import written_whole

COLUMN, PAGE = 3.3, 6.9
"""Width of one column and of a page of two, inches."""
_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "priorshift",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "savefig.dpi": 300,
}


@contextmanager
def publication() -> Iterator[None]:
    """Context in which figures are drawn and rendered in publication style, whatever the user's settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: Ends in .svg, .pdf or .png, which sets the format.

    Raises:
        ValueError: If it does not.
        OSError: If the file cannot be written.
    """
    form = path.suffix.removeprefix(".").lower()
    if form not in _UNDATED:
        raise ValueError(f"Expected `output` to end in .svg, .pdf or .png, but got {path.name}.")
    file = io.BytesIO()
    with publication():
        figure.savefig(file, format=form, metadata=_UNDATED[form])
    content = file.getvalue()
    if form == "svg":  # a hundredth of a point is finer than any screen, and a third of the file less
        content = re.sub(rb"\d+\.\d{3,}", lambda number: b"%g" % round(float(number[0]), 2), content)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
