"""A table beside its paper: the verdict, the numbers and the figure."""

import math
import statistics
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from priorshift.published import Column
from priorshift.report import Table as Printed
from priorshift.report.style import PALETTE
from priorshift.reproduce.outcome import Columns, Outcome, drawing, tidy
from priorshift.reproduce.tables import SMALL, Entries, Entry, Load, Plan, entries_of
from priorshift.reproduce.trainings import holds_out

MOST_PANELS = 6
"""Columns that get a panel each; more are places on one axis."""
MOST_SENTENCES = 3
"""Columns that get a sentence each; over more, a sentence speaks of all of them."""
_STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Seeds → standard errors beyond which a paired difference is at the 5 % level (Student's t); 10 stands for
more."""


def outcome(made: Plan, load: Load) -> Outcome:
    """The table from the predictions of its runs: published, ours and the difference.

    Args:
        made: What `plan` gave, all of whose runs are complete.
        load: Reads predictions.
    """
    entries = entries_of(made, load)
    small = made.settings.budget == "small"
    label = f", {SMALL}" if small else ""
    title = f"{made.table.paper.split(',')[0]}, {made.table.place}: {made.table.title}{label}"
    with drawing():
        figure = _draw(made, entries)
        figure.suptitle(f"{made.table.name}{', small budget' if small else ''}", fontsize=10)
    return Outcome(
        title=title,
        verdict=" ".join(_verdict(made, entries)),
        summary=_summary(made, entries, _trained_on(made, load)),
        numbers={"cells": _cells(made, entries), "seeds": _seeds(made, entries)},
        figure=figure,
    )


def _trained_on(made: Plan, load: Load) -> str:
    """The devices and the versions of torch of the trainings."""
    facts = [load(name, "test").facts for name in made.configs]
    found = {f"{each.get('device', 'an unknown device')}, torch {each.get('torch', '?')}" for each in facts}
    return "; ".join(sorted(found))


def _verdict(made: Plan, entries: Entries) -> list[str]:
    sentences = []
    if made.settings.budget == "small":
        sentences.append(f"Made with a {SMALL}: read orders and differences, not levels.")
    both = [entry for entry in entries.values() if entry.difference is not None and entry.column.percent]
    if both:
        near = sum(abs(entry.difference or 0.0) <= 1 for entry in both)
        furthest = max(both, key=lambda entry: abs(entry.difference or 0.0))
        sentences.append(
            f"Ours is within 1 point of the published number in {near} of {len(both)} cells, on average "
            f"{statistics.fmean(entry.difference or 0.0 for entry in both):+.1f} points from it; furthest in "
            f"{furthest.row.published}, {furthest.column.heading}: {furthest.difference:+.1f}."
        )
    return [*sentences, *_orders(made, entries), *_duels(made, entries)]


def _orders(made: Plan, entries: Entries) -> list[str]:
    """How far the order of the methods is the paper's; over many columns, the range."""
    agreements = {}
    for column in made.columns:
        pairs = [
            (entry.published, entry.spread.mean)
            for (_, name), entry in entries.items()
            if name == column.name and entry.published is not None
        ]
        published, ours = zip(*pairs, strict=True) if pairs else ((), ())
        if len(pairs) > 2 and min(len(set(published)), len(set(ours))) > 1:
            agreements[column.heading] = (_rank_correlation(published, ours), len(pairs))
    if len(agreements) > MOST_SENTENCES:
        found = [agreement for agreement, _ in agreements.values()]
        return [
            f"The order of the methods agrees with the paper's by a Spearman's ρ between {min(found):.2f} "
            f"and {max(found):.2f} over {len(found)} columns, {statistics.median(found):.2f} in the middle."
        ]
    return [
        f"{heading}: the order of {methods} methods agrees with the paper's by Spearman's ρ = "
        f"{agreement:.2f}."
        for heading, (agreement, methods) in agreements.items()
    ]


def _duels(made: Plan, entries: Entries) -> list[str]:
    """Whether LADE beats Balanced Softmax beyond the spread over seeds; over many columns, how often.

    LADE's row is moved to the mix, so it is set against PC Balanced Softmax where the table has that.
    """
    other = next((row for row in made.rows if row.name == "pc-balanced-softmax"), None)
    other = other or next((row for row in made.rows if row.name == "balanced-softmax"), None)
    if other is None:
        return []
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no different": []}
    sentences = []
    for column in made.columns:
        lade, rival = (entries.get((name, column.name)) for name in ("lade", other.name))
        if lade is None or rival is None or len(lade.values) < 2:
            continue
        changes = [a - b for a, b in zip(lade.values, rival.values, strict=True)]
        mean, error = statistics.fmean(changes), statistics.stdev(changes) / math.sqrt(len(changes))
        beyond = abs(mean) > _STUDENT.get(len(changes), 2.26) * error
        verdict = (
            ("better" if (mean > 0) == (column.measure == "accuracy") else "worse")
            if beyond
            else "no different"
        )
        verdicts[verdict].append(column.heading)
        digits = _digits(made, column)
        sentences.append(
            f"{column.heading}: LADE against {other.published} {mean:+.{digits}f} ± {error:.{digits}f} "
            f"(standard error over {len(changes)} paired seeds): LADE is {verdict} beyond the spread."
        )
    if len(sentences) <= MOST_SENTENCES:
        return sentences
    named = {verdict: f" ({', '.join(there)})" if there else "" for verdict, there in verdicts.items()}
    return [
        f"Against {other.published} over paired seeds, LADE is beyond the spread better in "
        f"{len(verdicts['better'])} of {len(sentences)} columns{named['better']} and worse in "
        f"{len(verdicts['worse'])}{named['worse']}."
    ]


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with middle ranks for ties."""
    ranks = [
        [sum(other < value for other in side) + sum(other <= value for other in side) for value in side]
        for side in (first, second)
    ]
    return statistics.correlation(*ranks)


def _digits(made: Plan, column: Column) -> int:
    """As many decimals as the paper prints in the column."""
    cells = (made.table.cell(row.name, column.name) for row in made.table)
    return max(cell.digits for cell in cells if cell)


def _summary(made: Plan, entries: Entries, where: str) -> Printed:
    rows = []
    for row in made.rows:
        cells = []
        for column in made.columns:
            entry = entries[row.name, column.name]
            digits = _digits(made, column)
            ours = f"{entry.spread.mean:.{digits}f}"
            if entry.spread.sd is not None:
                ours += f" ± {entry.spread.sd:.{digits}f}"
            if entry.published is None:
                cells.append(f"– / {ours}")
            else:
                cells.append(
                    f"{made.table.cell(row.name, column.name)} / {ours} ({entry.difference:+.{digits}f})"
                )
        held = ", a tenth held out" if any(holds_out(row, column) for column in made.columns) else ""
        rows.append((f"{row.published}{held}", *cells))
    spread = f"mean ± sd over {made.settings.seeds} seeds" if made.settings.seeds > 1 else "one seed"
    label = f" Ours: {SMALL}." if made.settings.budget == "small" else ""
    return Printed(
        headers=("Method", *(column.heading for column in made.columns)),
        rows=tuple(rows),
        caption=(
            f"Published / ours, {spread} (ours minus published); {made.table.measured}.{label} "
            "Shifted mixes weigh the whole test set exactly; the paper draws from it once. "
            f"Trained on {where}."
        ),
    )


def _cells(made: Plan, entries: Entries) -> Columns:
    listed = list(entries.values())
    return {
        "table": [made.table.name] * len(listed),
        "budget": [made.settings.budget] * len(listed),
        "row": [entry.row.name for entry in listed],
        "method": [entry.row.published for entry in listed],
        "column": [entry.column.name for entry in listed],
        "measure": [entry.column.measure for entry in listed],
        "published": ["" if entry.published is None else entry.published for entry in listed],
        "borrowed_from": [_source(made, entry) for entry in listed],
        "ours": [entry.spread.mean for entry in listed],
        "ours_sd": ["" if entry.spread.sd is None else entry.spread.sd for entry in listed],
        "difference": ["" if entry.difference is None else entry.difference for entry in listed],
        "seeds": [entry.spread.runs for entry in listed],
    }


def _source(made: Plan, entry: Entry) -> str:
    if entry.published is None:
        return ""
    cell = made.table.cell(entry.row.name, entry.column.name)
    return (cell.borrowed if cell else None) or ""


def _seeds(made: Plan, entries: Entries) -> Columns:
    listed = [(entry, seed) for entry in entries.values() for seed in range(made.settings.seeds)]
    return {
        "row": [entry.row.name for entry, _ in listed],
        "column": [entry.column.name for entry, _ in listed],
        "seed": [seed for _, seed in listed],
        "ours": [entry.values[seed] for entry, seed in listed],
        "run": [made.run(entry.row, entry.column, seed) for entry, seed in listed],
    }


def _draw(made: Plan, entries: Entries) -> Figure:
    """Lines over many columns of one score, else a panel a column."""
    return (_draw_lines if len(made.columns) > MOST_PANELS else _draw_panels)(made, entries)


def _draw_panels(made: Plan, entries: Entries) -> Figure:
    """A panel a column, a line a method: the published number hollow, ours filled, with its spread."""
    wide = len(made.columns)
    figure = Figure(figsize=(2.8 + 1.9 * wide, 1.5 + 0.3 * len(made.rows)), layout="constrained")
    panels = figure.subplots(1, wide, sharey=True, squeeze=False)[0]
    for column, ax in zip(made.columns, panels, strict=True):
        _draw_column(ax, [entries[row.name, column.name] for row in made.rows])
        ax.set_title(column.heading, fontsize=8)
    panels[0].set_yticks(range(len(made.rows)), [row.published for row in made.rows])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_column(ax: Axes, entries: Sequence[Entry]) -> None:
    heights = range(len(entries))
    printed = [
        (entry.published, height)
        for entry, height in zip(entries, heights, strict=True)
        if entry.published is not None
    ]
    ax.plot(
        [value for value, _ in printed],
        [height for _, height in printed],
        "D",
        markersize=5,
        fillstyle="none",
        color="#D55E00",
        label="published",
    )
    ax.errorbar(
        [entry.spread.mean for entry in entries],
        heights,
        xerr=[entry.spread.sd or 0.0 for entry in entries],
        fmt="o",
        markersize=5,
        color="#0072B2",
        capsize=2,
        label="ours, mean ± sd" if entries[0].spread.sd is not None else "ours, one seed",
    )
    ax.margins(x=0.15, y=0.08)
    tidy(ax)


def _draw_lines(made: Plan, entries: Entries) -> Figure:
    """Columns from left to right: the published numbers dashed, ours with a band of one sd."""
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(made.columns))
    for row, color, marker in zip(made.rows, cycle(PALETTE), cycle("os^DvPX*<>"), strict=False):
        line = [entries[row.name, column.name] for column in made.columns]
        mean = np.array([entry.spread.mean for entry in line])
        sd = np.array([entry.spread.sd or 0.0 for entry in line])
        ax.plot(places, mean, f"{marker}-", color=color, linewidth=1.5, markersize=4, label=row.published)
        ax.fill_between(places, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
        published = [math.nan if entry.published is None else entry.published for entry in line]
        ax.plot(places, published, "--", color=color, linewidth=0.9, alpha=0.8)
    ax.set_xticks(places, [column.heading for column in made.columns], rotation=35, ha="right")
    ax.set_ylabel(f"{made.table.measured}\nours solid, published dashed")
    tidy(ax)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure
