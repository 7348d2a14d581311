"""One self-contained HTML page from saved predictions: no script to run, nothing to fetch."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.axes import Axes
from torch import Tensor

from priorshift import __version__, shift
from priorshift._files import written_whole
from priorshift.evaluation import Comparison, by_method, compare
from priorshift.predictions import Predictions
from priorshift.report import figures, measures, tables, words
from priorshift.report.measures import ByClass, PooledReliability
from priorshift.report.tables import Table

_INK = "#010203"
"""Stands for the colour of the page's text, which an inline SVG takes as `currentColor`."""
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
_CALIBRATION = ("ece", "classwise_ece", "brier", "nll", "many", "medium", "few")


@dataclass(frozen=True)
class Section:
    """A figure of the page: its panels as inline SVG, what they show, and their numbers."""

    heading: str
    panels: tuple[Markup, ...]
    caption: str
    numbers: tuple[Table, ...]


def write_report(
    runs: Sequence[Predictions],
    path: str | Path,
    *,
    title: str,
    mixes: Sequence[str] = shift.STANDARD_MIXES,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Compare runs on a list of class mixes and write one HTML page of verdict, tables and figures.

    The same runs give the same page, byte for byte. It holds every number it draws, as tables and as JSON.

    Args:
        runs: Predictions on one and the same test set, with labels and training counts; those of one method
            differ by their seed.
        path: The file to write, whole or not at all.
        title: Heading of the page.
        mixes: Spelled as `priorshift.shift.target_prior` reads them.
        facts: What else the reader should know of the runs, such as data set and command.

    Returns:
        The path.

    Raises:
        ValueError: If there is no run or no mix, the runs are not of one test set, or one lacks labels or
            counts.
        OSError: If the file cannot be written.
    """
    if not mixes:
        raise ValueError("Expected at least one mix in `mixes`, but got none.")
    runs = [replace(run, method=run.method or "unnamed method") for run in runs]
    comparison = compare(runs, mixes)
    uniform = comparison if "uniform" in mixes else compare(runs, ["uniform"])
    gains = {mix: measures.compensation_gains(runs, mix) for mix in words.focal_mixes(mixes)}
    accuracies, probs = measures.class_accuracies(runs), measures.class_probs(runs)
    diagrams = measures.pooled_reliability(runs)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser sets the text, in fonts that have the glyphs of every class name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        sections = {
            "by_mix": _by_mix(comparison),
            "by_class": _by_class(accuracies, runs[0].num_classes),
            "average": _average(probs),
            "calibration": _calibration(diagrams),
        }
    shared, per_run = _facts(runs)
    scores = [score for score in _CALIBRATION if score in uniform.rows[0].spreads["uniform"]]
    page = _template().render(
        **sections,
        title=title,
        summary=_summary(runs),
        verdict=[
            sentence.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
            for sentence in words.verdict(comparison, gains)
        ],
        accuracy_table=tables.comparison_table(comparison),
        calibration_table=tables.score_table(uniform, "uniform", scores),
        sizes=Table(
            headers=("Mix", "Effective sample size"),
            rows=tuple(
                (tables.mix_name(mix), f"{size:.1f}")
                for mix, size in comparison.effective_sample_sizes.items()
            ),
            caption=f"Of {comparison.num_samples:,} test images.",
        ),
        standard_error=50 / math.sqrt(min(comparison.effective_sample_sizes.values())),
        facts={**facts, **shared},
        per_run=per_run,
        version=__version__,
        data=htmlsafe_json_dumps(
            _plain(
                {
                    "title": title,
                    "facts": facts,
                    "comparison": comparison,
                    "compensation_gains": gains,
                    "class_accuracies": accuracies,
                    "class_probs": probs,
                    "reliability": diagrams,
                    "runs": [
                        {"method": run.method, "carried": run.carried.probs, **run.facts} for run in runs
                    ],
                }
            ),
            allow_nan=False,
        ),
    )
    path = Path(path)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _by_mix(comparison: Comparison) -> Section:
    return Section(
        heading="Accuracy over the class mix",
        panels=(_inline(figures.plot_mixes(comparison), "mixes", words.describe_mixes(comparison)),),
        caption=(
            "Accuracy on the test set weighted to each mix. Forward mixes lean like the training set, "
            "backward mixes the other way; the ratio is that of the most to the least frequent class, 1 the "
            "uniform mix. Dashed: as trained. Solid: compensated, for which the mix must be known. Bands: ± "
            "one standard deviation over seeds. Where both coincide, only the solid line is seen."
        ),
        numbers=(tables.mix_numbers(comparison),),
    )


def _by_class(accuracies: ByClass, num_classes: int) -> Section:
    points = len(accuracies.names)
    grouped = (
        ""
        if points == num_classes
        else f" Each of the {points} points is the mean over about {num_classes / points:.3g} classes of "
        "neighbouring training counts."
    )
    alt = words.describe_class_accuracy(accuracies)
    return Section(
        heading="Accuracy against class frequency",
        panels=(_inline(figures.plot_class_accuracy(accuracies), "classes", alt),),
        caption=(
            "Accuracy on the test images of each class against its number of training images. Dashed: as "
            "trained. Solid: compensated to the uniform mix. Mean over seeds; bands: ± one standard "
            f"deviation.{grouped}"
        ),
        numbers=(tables.class_numbers(accuracies, "Accuracy of each class, percent.", percent=True),),
    )


def _average(probs: ByClass) -> Section:
    target = f"Mean predicted probability; the target is {1 / len(probs.names):.4f} for every class."
    return Section(
        heading="Average predicted probability",
        panels=tuple(
            _inline(
                figures.plot_class_probs(probs, method),
                f"probs{index}",
                words.describe_class_probs(probs, method),
            )
            for index, method in enumerate(probs.methods)
        ),
        caption=(
            "Mean predicted probability of each class, from most to fewest training images, on the test set "
            "weighted to the uniform mix. Dotted: that mix, which a classifier that fits it predicts on "
            "average. Dashed: as trained. Solid: compensated to it. Mean over seeds; bands: ± one standard "
            "deviation."
        ),
        numbers=(tables.class_numbers(probs, target, percent=False),),
    )


def _calibration(diagrams: Sequence[PooledReliability]) -> Section:
    colors = figures.method_colors(list(dict.fromkeys(diagram.method for diagram in diagrams)))
    return Section(
        heading="Calibration",
        panels=tuple(
            _inline(
                figures.plot_reliability(diagram, color=colors[diagram.method]),
                f"reliability{index}",
                words.describe_reliability(diagram),
            )
            for index, diagram in enumerate(diagrams)
        ),
        caption=(
            "Accuracy (coloured) and its gap to mean confidence (grey) in 20 bins of confidence, on the test "
            "set weighted to the uniform mix; above, predictions per bin. Dashed edges: as trained. Solid: "
            "compensated to that mix. The runs of a method are pooled over seeds, so the pooled ECE is not "
            "the mean ECE of the table. Bins of few predictions scatter by chance."
        ),
        numbers=tuple(map(tables.reliability_numbers, diagrams)),
    )


def _inline(ax: Axes, prefix: str, alt: str) -> Markup:
    """The figure as an SVG element that scales to its container and clashes with no other on the page."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _localised(name.rpartition("}")[2], value, prefix)
            for name, value in element.attrib.items()
        }
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _localised(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return value.replace("#", f"#{prefix}-", 1)
    value = value.replace("url(#", f"url(#{prefix}-").replace(_INK, "currentColor")
    return re.sub(r"(font: [^;]*?[\d.]+px )[^;]+", r"\1system-ui, sans-serif", value)


def _summary(runs: Sequence[Predictions]) -> str:
    methods = by_method(runs)
    numbers = sorted({len(group) for group in methods.values()})
    each = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    return (
        f"{len(methods)} {'method' if len(methods) == 1 else 'methods'} · {each} "
        f"{'run' if each == '1' else 'runs'} each · {runs[0].num_classes} classes · "
        f"{runs[0].num_samples:,} test images"
    )


def _facts(runs: Sequence[Predictions]) -> tuple[dict[str, str], Table]:
    """What is true of all runs, and a table of what differs between them."""
    texts = [{key: _text(value) for key, value in run.facts.items()} for run in runs]
    keys = dict.fromkeys(key for text in texts for key in text)
    shared = {
        key: texts[0][key]
        for key in keys
        if len(runs) > 1 and all(text.get(key) == texts[0].get(key) for text in texts)
    }
    differing = [key for key in keys if key not in shared]
    per_run = Table(
        headers=("Method", "Carried prior", *differing),
        rows=tuple(
            (run.method, words.describe_carried(run), *(text.get(key, "") for key in differing))
            for run, text in zip(runs, texts, strict=True)
        ),
        caption="The runs. A carried prior holds by theory where the loss implies it, else by convention.",
    )
    fingerprint = {"fingerprint of the test images": runs[0].fingerprint} if runs[0].fingerprint else {}
    return {**fingerprint, **shared}, per_run


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def _plain(value: Any) -> Any:
    """A value as JSON holds it; numbers that JSON does not know become null."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("priorshift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
