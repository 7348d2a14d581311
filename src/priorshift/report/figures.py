"""Figures: each draws data on a Matplotlib Axes and returns it, and touches no global state.

A method has the same color in every figure. Dashed is a method as trained, solid is compensated.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from priorshift.evaluation import Comparison, Spread
from priorshift.report.measures import ByClass, ClassShare, OracleGapRow, PooledReliability
from priorshift.report.style import PALETTE as PALETTE
from priorshift.report.style import ink, legend_above, literal, marker, new_axes, tidy
from priorshift.report.style import method_colors as method_colors
from priorshift.report.tables import TARGET_TITLES, mix_name

_WIDE = (4.8, 3.5)
_SMALL = (3.3, 2.7)
_LEGEND_LINE = 0.2
MOST_NAMED = 30
"""Classes up to which each has a line of its own in the figure of shares."""
_TARGET_STYLES: dict[str, dict[str, Any]] = {
    "none": {"linestyle": "--", "markerfacecolor": "none"},
    "estimated": {"linestyle": "-"},
    "oracle": {"linestyle": ":", "marker": None},
}


def plot_mixes(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Accuracy over the class mixes: a line per method as trained and compensated, bands of ± one sd.

    Args:
        comparison: What `priorshift.evaluation.compare` returned.
        ax: Axes to draw on; without it, on those of a new Figure.
    """
    methods = tuple(dict.fromkeys(row.method for row in comparison.rows))
    ax = ax or new_axes(_below_legend(methods))
    for row in comparison.rows:
        spreads = [row.spreads[mix]["accuracy"] for mix in comparison.mixes]
        _plot_line(ax, list(range(len(spreads))), spreads, methods, row.method, row.compensated, scale=100)
    _label_mixes(ax, comparison.mixes)
    ax.set_ylabel("Accuracy (%)")
    _within_percent(ax)
    tidy(ax)
    _method_legend(ax, methods)
    return ax


def plot_class_accuracy(by_class: ByClass, ax: Axes | None = None) -> Axes:
    """Accuracy of each class against its training count, on a log axis that falls from left to right.

    Args:
        by_class: What `class_accuracies` returned.
        ax: Axes to draw on; without it, on those of a new Figure.
    """
    ax = ax or new_axes(_below_legend(by_class.methods))
    for row in by_class.rows:
        _plot_line(
            ax,
            by_class.train_counts,
            row.spreads,
            by_class.methods,
            row.method,
            row.compensated,
            scale=100,
        )
    if min(by_class.train_counts) > 0:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=1)
    ticks = _round_counts(min(by_class.train_counts), max(by_class.train_counts))
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.invert_xaxis()
    ax.set_xlabel("Training images of the class, frequent → rare (log scale)")
    ax.set_ylabel("Accuracy of the class (%)")
    _within_percent(ax)
    tidy(ax)
    _method_legend(ax, by_class.methods)
    return ax


def plot_class_probs(by_class: ByClass, method: str, ax: Axes | None = None) -> Axes:
    """Mean predicted probability of each class of one method against the uniform target.

    Args:
        by_class: What `class_probs` returned.
        method: The method to draw.
        ax: Axes to draw on; without it, on those of a new Figure.

    Raises:
        ValueError: If there is no such method.

    Reference:
        Hong et al., *Disentangling label distribution for long-tailed visual recognition*, CVPR 2021, Figure
        2.
    """
    if method not in by_class.methods:
        raise ValueError(f"Expected `method` to be one of {by_class.methods}, but got {method!r}.")
    ax = ax or new_axes(_SMALL)
    places = list(range(len(by_class.names)))
    ax.axhline(1 / len(places), color=ink(), linewidth=1, linestyle=":", label="target")
    for row in by_class.rows:
        if row.method == method:
            _plot_line(ax, places, row.spreads, by_class.methods, method, row.compensated, scale=1)
    if len(places) <= 12:
        _name_ticks(ax, [literal(name, 9) for name in by_class.names])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("Class, by training count (0: most)")
    # One scale for all methods, so that panels can be compared.
    highest = max(spread.mean + (spread.sd or 0.0) for row in by_class.rows for spread in row.spreads)
    ax.set_ylim(0, 1.08 * max(highest, 1 / len(places)))
    ax.set_ylabel("Mean probability")
    ax.set_title(literal(method, 30))
    tidy(ax)
    return ax


def plot_reliability(diagram: PooledReliability, ax: Axes | None = None, *, color: str = PALETTE[0]) -> Axes:
    """Reliability diagram: accuracy by bin of confidence, the gap to confidence, predictions per bin on top.

    Args:
        diagram: One of those that `pooled_reliability` returned.
        ax: Axes to draw on; without it, on those of a new Figure. The predictions per bin get Axes of their
            own above it.
        color: Color of the method.

    Reference:
        Guo et al., *On calibration of modern neural networks*, ICML 2017, Figure 1.
    """
    ax = ax or new_axes((_SMALL[0], 3.2))
    bins = diagram.bins
    edges, accuracy, confidence = bins.edges, bins.accuracy, bins.confidence
    filled = ~np.isnan(accuracy)
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, confidence = accuracy[filled], confidence[filled]
    fill, edge = (color, 0.55), "-" if diagram.compensated else (0, (2.5, 1.5))
    ax.bar(
        left,
        accuracy,
        width,
        align="edge",
        facecolor=fill,
        edgecolor=color,
        linewidth=0.9,
        linestyle=edge,
        label="accuracy",
    )
    ax.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor=(ink(), 0.16),
        edgecolor=ink(),
        linewidth=0.6,
        label="gap to confidence",
    )
    ax.plot([0, 1], [0, 1], color=ink(), linewidth=1, linestyle=":")
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="Accuracy")
    ax.set_xlabel(f"Confidence (pooled ECE {diagram.error:.3f})")
    tidy(ax)
    above = ax.inset_axes((0, 1.05, 1, 0.2))
    counts = np.array(diagram.counts)[filled]
    above.bar(
        left, counts, width, align="edge", facecolor=fill, edgecolor=color, linewidth=0.9, linestyle=edge
    )
    above.set(xlim=(0, 1), xticks=[], yticks=[counts.max()], yticklabels=[f"{counts.max():,.0f}"])
    above.spines[["top", "right"]].set_visible(False)
    above.set_title(literal(diagram.label, 34))
    return ax


def plot_shares(shares: Sequence[ClassShare], num_samples: int, ax: Axes | None = None) -> Axes:
    """Estimated share of each class with its interval, against the carried one and, where known, the true.

    Up to 30 classes each have a line. More are points: the estimate over the true share, or over the carried
    one where no labels are known, on axes that are logarithmic from one sample's share on.

    Args:
        shares: What `class_shares` returned.
        num_samples: Target samples.
        ax: Axes to draw on; without it, on those of a new Figure.
    """
    if len(shares) > MOST_NAMED:
        return _plot_share_points(shares, num_samples, ax)
    ax = ax or new_axes((_WIDE[0], 1.2 + 0.24 * len(shares)))
    places = list(range(len(shares)))
    ends = [(place, share.interval) for place, share in enumerate(shares) if share.interval is not None]
    if ends:
        ax.hlines(
            [place for place, _ in ends],
            [100 * low for _, (low, _) in ends],
            [100 * high for _, (_, high) in ends],
            color=PALETTE[0],
            linewidth=4,
            alpha=0.35,
            label="interval",
        )
    _plot_dots(ax, [100 * share.carried for share in shares], places, "carried")
    _plot_dots(ax, [100 * share.estimated for share in shares], places, "estimated")
    if shares[0].true is not None:
        _plot_dots(ax, [np.nan if s.true is None else 100 * s.true for s in shares], places, "true")
    ax.set_yticks(places, [literal(share.label, 20) for share in shares])
    ax.set_ylim(len(shares) - 0.4, -0.6)
    ax.set_xlim(left=-0.5)
    ax.set_xlabel("Share of the target samples (%)")
    tidy(ax, "x")
    legend_above(ax, columns=2)
    return ax


def plot_oracle_gaps(rows: Sequence[OracleGapRow], method: str, ax: Axes | None = None) -> Axes:
    """Accuracy of one method over the mixes with the mix not used, estimated and known.

    Args:
        rows: What `oracle_gap_rows` returned; those of all methods give the color and a common scale.
        method: The method to draw.
        ax: Axes to draw on; without it, on those of a new Figure.

    Raises:
        ValueError: If there is no such method.
    """
    methods = tuple(dict.fromkeys(row.method for row in rows))
    if method not in methods:
        raise ValueError(f"Expected `method` to be one of {methods}, but got {method!r}.")
    ax = ax or new_axes((_SMALL[0], 3.1))
    shown = [row for row in rows if row.method == method]
    places = range(len(shown))
    color = method_colors(methods)[method]
    for known, knowledge in TARGET_TITLES.items():
        means = 100 * np.array([row.accuracy[known].mean for row in shown])
        line: dict[str, Any] = {
            "color": color,
            "marker": marker(methods, method),
            "markersize": 4,
            "linewidth": 1.6,
        }
        if known == "oracle":
            line["color"] = ink()
        ax.plot(places, means, label=knowledge, **line | _TARGET_STYLES[known])
        sds = 100 * np.array([row.accuracy[known].sd or 0.0 for row in shown])
        if sds.any() and known != "oracle":
            ax.fill_between(places, means - sds, means + sds, color=color, alpha=0.16, linewidth=0)
    _label_mixes(ax, [row.mix for row in shown], short=True)
    # One scale for all methods, so that panels can be compared.
    every = [spread for row in rows for spread in row.accuracy.values()]
    ax.set_ylim(
        100 * min(spread.mean - (spread.sd or 0.0) for spread in every) - 1,
        100 * max(spread.mean + (spread.sd or 0.0) for spread in every) + 1,
    )
    _within_percent(ax)
    ax.set_ylabel("Accuracy (%)")
    ax.set_title(literal(method, 30))
    tidy(ax)
    return ax


def _below_legend(methods: Sequence[str]) -> tuple[float, float]:
    """Room for axes of the same height below a legend of any number of methods."""
    width, height = _WIDE
    return width, height + _LEGEND_LINE * max(0, (len(methods) + 1) // 2 - 2)


def _plot_line(
    ax: Axes,
    places: Sequence[int],
    spreads: Sequence[Spread | None],
    methods: Sequence[str],
    method: str,
    compensated: bool,
    scale: float,
) -> None:
    means = scale * np.array([np.nan if spread is None else spread.mean for spread in spreads])
    sds = scale * np.array([np.nan if spread is None else spread.sd or 0.0 for spread in spreads])
    color = method_colors(methods)[method]
    ax.plot(
        places,
        means,
        color=color,
        linestyle="-" if compensated else "--",
        linewidth=1.6,
        marker=marker(methods, method) if len(places) <= 20 else None,
        markersize=4,
        markerfacecolor=color if compensated else "none",
        label=f"{literal(method)}, compensated" if compensated else literal(method),
    )
    if sds.any():
        ax.fill_between(places, means - sds, means + sds, color=color, alpha=0.16, linewidth=0)


def _plot_share_points(shares: Sequence[ClassShare], num_samples: int, ax: Axes | None) -> Axes:
    ax = ax or new_axes((_WIDE[0], 4.4))
    labeled = shares[0].true is not None
    across = [100 * (s.carried if s.true is None else s.true) for s in shares]
    estimated = [100 * share.estimated for share in shares]
    ends = [(x, s.interval) for x, s in zip(across, shares, strict=True) if s.interval is not None]
    if ends:
        ax.vlines(
            [x for x, _ in ends],
            [100 * low for _, (low, _) in ends],
            [100 * high for _, (_, high) in ends],
            color=PALETTE[0],
            linewidth=0.8,
            alpha=0.25,
            label="interval",
        )
    drawn = [*across, *estimated, *(100 * high for _, (_, high) in ends)]
    if labeled:
        carried = [100 * share.carried for share in shares]
        drawn += carried
        _plot_dots(ax, across, carried, "carried", markersize=2.5)
    _plot_dots(ax, across, estimated, "estimated", markersize=2.5)
    one = 100 / num_samples
    highest = 1.3 * max(drawn)
    ax.plot([0, highest], [0, highest], color=ink(), linewidth=0.8, linestyle=":", label="equal")
    ticks = [0.0, *(10.0**power for power in range(-5, 3) if one <= 10.0**power <= highest)]
    for axis, scale, limit in (
        (ax.xaxis, ax.set_xscale, ax.set_xlim),
        (ax.yaxis, ax.set_yscale, ax.set_ylim),
    ):
        scale("symlog", linthresh=one, linscale=0.4)
        limit(-0.15 * one, highest)
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"{'True' if labeled else 'Carried'} share of the class (%)")
    ax.set_ylabel("Carried or estimated share (%)" if labeled else "Estimated share (%)")
    tidy(ax)
    legend_above(ax, columns=2)
    return ax


def _plot_dots(
    ax: Axes, across: Sequence[float], up: Sequence[float], which: str, *, markersize: float = 5
) -> None:
    looks: dict[str, dict[str, Any]] = {
        "carried": {"marker": "o", "color": ink(), "markerfacecolor": "none", "alpha": 0.5},
        "estimated": {"marker": "o", "color": PALETTE[0]},
        "true": {"marker": "|", "color": PALETTE[1], "markeredgewidth": 2, "markersize": 2.2 * markersize},
    }
    look: dict[str, Any] = {"linestyle": "none", "markersize": markersize} | looks[which]
    ax.plot(across, up, label=which, **look)


def _label_mixes(ax: Axes, mixes: Sequence[str], *, short: bool = False) -> None:
    shifts = [re.fullmatch(r"(?:forward|backward):(.+)|uniform", mix) for mix in mixes]
    if all(shifts):
        ax.set_xticks(range(len(mixes)), [shift[1] or "1" for shift in shifts if shift])
        ratio = "ratio" if short else "ratio of most to least frequent class"
        ax.set_xlabel(f"forward ←  {ratio}  → backward")
    else:
        _name_ticks(ax, [literal(mix_name(mix), 18) for mix in mixes])


def _name_ticks(ax: Axes, names: Sequence[str]) -> None:
    if max(map(len, names)) <= 2:
        ax.set_xticks(range(len(names)), names)
    else:
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")


def _round_counts(least: int, most: int) -> list[int]:
    tens = [10**power for power in range(len(str(most)))]
    ticks = [tick for ten in tens for tick in (ten, 2 * ten, 5 * ten) if least <= tick <= most]
    return ticks if 2 <= len(ticks) <= 8 else [ten for ten in tens if least <= ten <= most] or [least, most]


def _within_percent(ax: Axes) -> None:
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -1), min(high, 101))


def _method_legend(ax: Axes, methods: Sequence[str]) -> None:
    colors = method_colors(methods)
    handles = [
        Line2D([], [], color=colors[method], marker=marker(methods, method), markersize=5, linewidth=1.6)
        for index, method in enumerate(methods)
    ]
    handles += [Line2D([], [], color=ink(), linestyle=style, linewidth=1.6) for style in ("--", "-")]
    names = [*(literal(method, 22) for method in methods), "as trained", "compensated"]
    legend_above(ax, handles, names, columns=2)
