"""Style of all figures: one color for each method, distinct for color-blind readers, and bare axes.

The colors are Okabe and Ito's. Text and lines that are no data take the colors of the reader's own
Matplotlib settings.

Reference:
    Okabe and Ito, *Color universal design*, 2008.
"""

import re
from collections.abc import Sequence
from itertools import chain, cycle
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^DvPX"
_RESERVED = dict(
    zip(
        ("Softmax", "Balanced Softmax", "LADE", "Logit-adjusted loss", "Equalised", "LDAM"),
        PALETTE,
        strict=True,
    )
)
"""The methods that are met most often: they have their color whatever else is drawn."""


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """The color of each method: its reserved one or a free one; then colors repeat with other markers.

    Example:
        >>> method_colors(["LADE"]) == {"LADE": method_colors(["Softmax", "LADE"])["LADE"]}
        True
    """
    taken = {_RESERVED[method] for method in methods if method in _RESERVED}
    free = chain((color for color in PALETTE if color not in taken), cycle(PALETTE))
    return {method: _RESERVED.get(method) or next(free) for method in dict.fromkeys(methods)}


def marker(methods: Sequence[str], method: str) -> str:
    """The marker of a method among those drawn."""
    return _MARKERS[methods.index(method) % len(_MARKERS)]


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a new Figure."""
    return Figure(figsize=size, layout="constrained").add_subplot()


def tidy(ax: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Remove the top and right spines; draw a faint grid along one axis."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=axis, alpha=0.18, linewidth=0.8)
    ax.set_axisbelow(True)


def legend_above(
    ax: Axes, handles: Sequence[Line2D] | None = None, names: Sequence[str] | None = None, *, columns: int
) -> None:
    """A legend above the axes, so that it hides no data."""
    shown = {} if handles is None else {"handles": handles, "labels": names}
    ax.legend(
        **shown,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        ncols=columns,
        frameon=False,
        handlelength=2.2,
    )


def ink() -> str:
    """The color of text and of lines that are no data."""
    color: str = matplotlib.rcParams["text.color"]
    return color


def literal(name: str, longest: int = 60) -> str:
    """A name as it is, in one line, cut where it is longer."""
    # A dollar would start a formula, and a leading underscore would hide a name from the legend.
    shown = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    shown = re.sub(r"\$", r"\\$", shown)
    return f" {shown}" if shown.startswith("_") else shown
