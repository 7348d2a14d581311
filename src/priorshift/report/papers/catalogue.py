"""Catalogue of the papers' figures and the functions that draw each from runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from priorshift.priors import Prior
from priorshift.report.figures import plot_class_probs, plot_reliability
from priorshift.report.measures import class_probs, pooled_reliability
from priorshift.report.papers.figures import (
    plot_class_logits,
    plot_errors,
    plot_tau_errors,
    plot_weight_norms,
)
from priorshift.report.papers.measures import (
    class_logits,
    errors_by_frequency,
    errors_by_group,
    tau_errors,
    weight_norms,
)
from priorshift.report.papers.saving import COLUMN, PAGE, publication
from priorshift.report.papers.sources import Source, read_sources, require_seeds
from priorshift.report.style import ink, method_colors, new_axes


@dataclass(frozen=True)
class PaperFigure:
    """A figure of one of the papers.

    Attributes:
        what: Content of the figure, in a phrase.
        needs: The runs that it needs, in a phrase.
        draw: Draws it from the runs.
    """

    what: str
    needs: str
    draw: Callable[[Sequence[Source]], Figure]


def paper_figure(name: str, runs: Sequence[Path]) -> Figure:
    """Draws a figure of one of the papers from your own runs, in publication size.

    Args:
        name: A key of `PAPER_FIGURES`.
        runs: Run folders, whose test predictions are read, or predictions files; of one test set and one
            training mix. Those of one method that differ by their seed are drawn as one.

    Raises:
        FileNotFoundError: If a run or its predictions do not exist.
        ValueError: If there is no such figure, or the runs are not those that it needs; the message names
            what is missing.
    """
    if name not in PAPER_FIGURES:
        raise ValueError(
            f"There is no figure {name!r}; there are {', '.join(PAPER_FIGURES)}. "
            "The synthetic ones are targets of `priorshift reproduce`."
        )
    sources = read_sources(runs)
    with publication():
        return PAPER_FIGURES[name].draw(sources)


def _class_probs(sources: Sequence[Source]) -> Figure:
    by_class = class_probs([source.predictions for group in _by_method(sources).values() for source in group])
    figure, panels = _panels(len(by_class.methods), columns=3, height=2.0, share=True)
    for method, ax in zip(by_class.methods, panels, strict=True):
        plot_class_probs(by_class, method, ax)
    _label_outer(figure)
    handles = [Line2D([], [], color=ink(), linestyle=line, linewidth=1.2) for line in ("--", "-", ":")]
    names = ["as trained", "compensated to the uniform mix", "uniform"]
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    return figure


def _class_logits(sources: Sequence[Source]) -> Figure:
    groups: dict[str, list[Source]] = {}
    for source in sorted(sources, key=lambda source: source.alpha or 0.0):
        groups.setdefault(_title(source), []).append(source)
    if len(groups) < 2:
        raise ValueError(
            "Expected run folders of LADE at several α, or of several methods, but all of these are "
            f"{next(iter(groups))}."
        )
    for title, group in groups.items():
        require_seeds(title, group)
    figure, panels = _panels(len(groups), columns=5, height=2.3, share=True)
    for (title, group), ax in zip(groups.items(), panels, strict=True):
        plot_class_logits(class_logits([source.predictions for source in group], title), ax)
    _label_outer(figure)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    return figure


def _reliability(sources: Sequence[Source]) -> Figure:
    runs = [source.predictions for group in _by_method(sources).values() for source in group]
    uniform = Prior.uniform(runs[0].num_classes)
    as_uniform = {run.method for run in runs if run.carried.matches(uniform)}
    diagrams = [
        diagram
        for diagram in pooled_reliability(runs)
        if not (diagram.compensated and diagram.method in as_uniform)
    ]
    colors = method_colors(list(dict.fromkeys(diagram.method for diagram in diagrams)))
    figure, panels = _panels(len(diagrams), columns=4, height=2.2, share=False)
    for diagram, ax in zip(diagrams, panels, strict=True):
        plot_reliability(diagram, ax, color=colors[diagram.method])
        ax.set_xlabel(f"Confidence (ECE {diagram.error:.3f})")
    return figure


def _weight_norms(sources: Sequence[Source]) -> Figure:
    method = _one_method(sources)
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.optimizer, []).append(source)
    if len(groups) < 2:
        raise ValueError(
            "Expected run folders under two optimizers, such as SGD with momentum and Adam, "
            f"but all of these are of {next(iter(groups))}."
        )
    for name, group in groups.items():
        require_seeds(name, group)
    counts = sources[0].predictions.train_counts
    assert counts is not None
    norms = {
        name: weight_norms([source.weights() for source in group], counts) for name, group in groups.items()
    }
    return _figure_of(plot_weight_norms(norms, method=method))


def _tau_errors(sources: Sequence[Source]) -> Figure:
    method = _one_method(sources)
    require_seeds(method, sources)
    errors = tau_errors([s.predictions for s in sources], [s.weights() for s in sources])
    return _figure_of(plot_tau_errors(errors, method=method))


def _errors_by_group(sources: Sequence[Source]) -> Figure:
    _by_method(sources)
    return _figure_of(plot_errors(errors_by_group([source.predictions for source in sources])))


def _errors_by_frequency(sources: Sequence[Source]) -> Figure:
    _by_method(sources)
    errors = errors_by_frequency([source.predictions for source in sources])
    return _figure_of(plot_errors(errors, new_axes((PAGE, 2.5))))


PAPER_FIGURES: dict[str, PaperFigure] = {
    "lade-figure-2": PaperFigure("mean predicted probability of each class", "any runs", _class_probs),
    "lade-figure-3": PaperFigure(
        "logits of each class on positive and negative samples",
        "run folders of LADE at several α, and others",
        _class_logits,
    ),
    "lade-figure-4": PaperFigure("reliability diagrams with 20 bins", "any runs", _reliability),
    "lade-figure-6": PaperFigure("the same of another data set", "any runs", _reliability),
    "la-figure-1": PaperFigure(
        "weight norm of each class", "run folders of one method under two optimizers", _weight_norms
    ),
    "la-figure-3": PaperFigure(
        "balanced error of post-hoc methods by τ", "run folders of Softmax", _tau_errors
    ),
    "la-figure-4": PaperFigure(
        "error on classes of many, medium and few training samples", "any runs", _errors_by_group
    ),
    "la-figure-8": PaperFigure(
        "error on ten groups of classes by frequency", "any runs", _errors_by_frequency
    ),
    "la-figure-9": PaperFigure("figure 3 on the step profile", "run folders of Softmax", _tau_errors),
}
"""Name → figure. The synthetic figures of logit adjustment are targets of `priorshift reproduce`."""


def _by_method(sources: Sequence[Source]) -> dict[str, list[Source]]:
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.predictions.method, []).append(source)
    for method, group in groups.items():
        require_seeds(method or "a method", group)
    return groups


def _one_method(sources: Sequence[Source]) -> str:
    methods = list(dict.fromkeys(source.predictions.method for source in sources))
    if len(methods) > 1:
        raise ValueError(f"Expected runs of one method, but got {' and '.join(methods)}.")
    return methods[0]


def _title(source: Source) -> str:
    run = source.predictions
    name = run.method if run.carried.matches(Prior.uniform(run.num_classes)) else f"PC {run.method}"
    return name if source.alpha is None else f"{name}, α = {source.alpha:g}"


def _panels(count: int, *, columns: int, height: float, share: bool) -> tuple[Figure, list[Axes]]:
    """As many panels, side by side on the width of a column or a page; those beyond a row below it."""
    wide = min(count, columns)
    tall = -(-count // wide)
    figure = Figure(figsize=(COLUMN if count == 1 else PAGE, height * tall), layout="constrained")
    panels = list(figure.subplots(tall, wide, sharey=share, squeeze=False).flat)
    for ax in panels[count:]:
        ax.remove()
    return figure, panels[:count]


def _label_outer(figure: Figure) -> None:
    for ax in figure.axes:
        place = ax.get_subplotspec()
        if place is not None and not place.is_first_col():
            ax.set_ylabel("")


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure
