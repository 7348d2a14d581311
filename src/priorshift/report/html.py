"""Shared by all pages: figures as inline SVG, values as text and as JSON, templates, and writing the file."""

import base64
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.axes import Axes

from priorshift import __version__
from priorshift._files import written_whole
from priorshift.priors import Prior
from priorshift.report.tables import Table

_INK = "#010203"
"""Stands for the color of the page's text, which an inline SVG takes as `currentColor`."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "priorshift",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}


@dataclass(frozen=True)
class Section:
    """A figure of the page: its panels as inline SVG, their caption, and their numbers.

    Attributes:
        heading: Heading of the section.
        panels: The figures.
        caption: Caption of the figure.
        numbers: Every number that is drawn, unless another table of the page holds them.
    """

    heading: str
    panels: tuple[Markup, ...]
    caption: str
    numbers: tuple[Table, ...] = ()


@contextmanager
def page_style() -> Iterator[None]:
    """Context in which figures are drawn in the style of the pages."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser sets the text, in fonts that have the glyphs of every class name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline_svg(ax: Axes, prefix: str, alt: str) -> Markup:
    """The figure as an SVG element that scales to its container and clashes with no other on the page."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _localized(name.rpartition("}")[2], value, prefix)
            for name, value in element.attrib.items()
        }
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def as_text(value: object) -> str:
    """A fact as text for the page."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value))
    return str(value)


def unbroken(sentence: str) -> str:
    """The sentence with numbers kept on one line with their deviations and percent signs."""
    return sentence.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(
        " %", "\N{NO-BREAK SPACE}%"
    )


def render_page(
    template: str,
    *,
    title: str,
    verdict: Sequence[str],
    data: Mapping[str, Any],
    script: str = "",
    **content: Any,
) -> str:
    """Fill a template.

    Args:
        template: Name of a template of this package that extends `base.html.j2`.
        title: Heading of the page.
        verdict: The sentences on top.
        data: Data of the page, as JSON.
        script: The only script that the page lets the browser run.
        content: Other variables of the template.
    """
    environment = Environment(
        loader=PackageLoader("priorshift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **content,
        title=title,
        verdict=[unbroken(sentence) for sentence in verdict],
        version=__version__,
        data=as_json({"title": title, **data}),
        script=Markup(script),
        allowed_script=f"'sha256-{digest}'" if script else "'none'",
    )


def write_page(path: str | Path, template: str, **content: Any) -> Path:
    """Fill a template as `render_page` does and write the page, whole or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    return save_page(path, render_page(template, **content))


def save_page(path: str | Path, page: str) -> Path:
    """Write a page, whole or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def as_json(value: Any) -> Markup:
    """A value as JSON that may stand in an element of a page, whatever text it holds."""
    return htmlsafe_json_dumps(_plain(value), allow_nan=False)


def _localized(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return value.replace("#", f"#{prefix}-", 1)
    value = value.replace("url(#", f"url(#{prefix}-").replace(_INK, "currentColor")
    return re.sub(r"(font: [^;]*?[\d.]+px )[^;]+", r"\1system-ui, sans-serif", value)


def _plain(value: Any) -> Any:
    """A value as JSON holds it; numbers that JSON does not know become null."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Prior):
        value = value.probs
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)
