"""The papers' figures that are not in the report: each draws data on Axes and returns them.

A method has the same color as in every other figure; what is no method has the color of text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from priorshift.evaluation import Spread
from priorshift.report.papers.measures import ClassLogits, GroupErrors, TauErrors
from priorshift.report.papers.saving import COLUMN
from priorshift.report.style import ink, legend_above, literal, method_colors, new_axes, tidy

_SIZE = (COLUMN, 2.5)
_LINES = ("--", ":", "-.")


def plot_class_logits(panel: ClassLogits, ax: Axes | None = None) -> Axes:
    r"""Logits of each class on positive and negative samples: means, bands of ± one sd, and $\log C$.

    Args:
        panel: What `class_logits` returned.
        ax: Axes to draw on; without it, on those of a new Figure.

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Figure
        3.
    """
    ax = ax or new_axes(_SIZE)
    color = method_colors([panel.method])[panel.method]
    classes = np.arange(len(panel.positive_mean))
    _plot_band(
        ax,
        classes,
        panel.positive_mean,
        panel.positive_sd,
        color=color,
        linestyle="-",
        label="positive samples",
    )
    _plot_band(
        ax,
        classes,
        panel.negative_mean,
        panel.negative_sd,
        color=ink(),
        linestyle="--",
        label="negative samples",
    )
    ax.axhline(math.log(len(classes)), color=ink(), linewidth=0.8, linestyle=":", label="log C")
    ax.set_title(literal(panel.title, 30))
    ax.set_ylabel("Logit of the class")
    _class_axis(ax)
    tidy(ax)
    return ax


def plot_weight_norms(
    norms: Mapping[str, Sequence[Spread]], ax: Axes | None = None, *, method: str = "Softmax"
) -> Axes:
    """Weight norm of each class by frequency: a line for each optimizer, bands of ± one sd over runs.

    Args:
        norms: Name of an optimizer → what `weight_norms` returned.
        ax: Axes to draw on; without it, on those of a new Figure.
        method: Whose weights they are, for the color of the first line.

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figure 1.
    """
    ax = ax or new_axes(_SIZE)
    for index, (name, spreads) in enumerate(norms.items()):
        _plot_band(
            ax,
            np.arange(len(spreads)),
            [spread.mean for spread in spreads],
            [spread.sd or 0.0 for spread in spreads],
            color=method_colors([method])[method] if index == 0 else ink(),
            linestyle="-" if index == 0 else _LINES[(index - 1) % len(_LINES)],
            label=literal(name, 30),
        )
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Norm of the class's weights")
    _class_axis(ax)
    tidy(ax)
    legend_above(ax, columns=2)
    return ax


def plot_tau_errors(errors: TauErrors, ax: Axes | None = None, *, method: str = "Softmax") -> Axes:
    """Balanced error against τ for logit adjustment and weight normalization, bands of ± one sd over runs.

    Args:
        errors: What `tau_errors` returned.
        ax: Axes to draw on; without it, on those of a new Figure.
        method: Whose logits they are, for the color of logit adjustment.

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figures 3 and 9.
    """
    ax = ax or new_axes(_SIZE)
    for name, spreads, color, line in (
        ("logit adjustment", errors.logit_adjustment, method_colors([method])[method], "-"),
        ("weight normalization", errors.weight_normalization, ink(), "--"),
    ):
        _plot_band(
            ax,
            errors.taus,
            [100 * spread.mean for spread in spreads],
            [100 * (spread.sd or 0.0) for spread in spreads],
            color=color,
            linestyle=line,
            label=name,
        )
    ax.set_xlabel("Scaling parameter τ")
    ax.set_ylabel("Balanced error (%)")
    tidy(ax)
    legend_above(ax, columns=2)
    return ax


def plot_errors(errors: GroupErrors, ax: Axes | None = None) -> Axes:
    """Error of every method on groups of classes: bars, with ± one sd over runs where there are several.

    Args:
        errors: What `errors_by_group` or `errors_by_frequency` returned.
        ax: Axes to draw on; without it, on those of a new Figure.

    Reference:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Figures 4 and 8.
    """
    ax = ax or new_axes(_SIZE)
    colors = method_colors(list(errors.errors))
    width = 0.84 / len(colors)
    places = np.arange(len(errors.groups))
    for index, (method, spreads) in enumerate(errors.errors.items()):
        means = [np.nan if spread is None else 100 * spread.mean for spread in spreads]
        sds = [0.0 if spread is None else 100 * (spread.sd or 0.0) for spread in spreads]
        ax.bar(
            places + (index - (len(colors) - 1) / 2) * width,
            means,
            width,
            yerr=sds if any(sds) else None,
            error_kw={"elinewidth": 0.7, "ecolor": ink()},
            color=colors[method],
            edgecolor="white",
            linewidth=0.3,
            label=literal(method, 22),
        )
    ax.set_xticks(places, errors.groups)
    ax.set_xlabel(errors.axis)
    ax.set_ylabel("Error (%)")
    ax.set_ylim(0, 100)
    tidy(ax)
    legend_above(ax, columns=2)
    return ax


def _plot_band(
    ax: Axes,
    places: Sequence[float] | np.ndarray[Any, Any],
    means: Sequence[float] | Float[np.ndarray, " places"],
    sds: Sequence[float] | Float[np.ndarray, " places"],
    *,
    color: str,
    linestyle: str,
    label: str,
) -> None:
    middle, half = np.asarray(means), np.asarray(sds)
    ax.plot(places, middle, color=color, linestyle=linestyle, linewidth=1.2, label=label)
    if half.any():
        ax.fill_between(places, middle - half, middle + half, color=color, alpha=0.18, linewidth=0)


def _class_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel("Class, frequent → rare")
