"""Tables of text for a page, a Markdown file or a terminal."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from priorshift.evaluation import Comparison, Scores, Spread
from priorshift.report.measures import ByClass, ClassShare, OracleGapRow, PooledReliability

if TYPE_CHECKING:
    import rich.table

UNDEFINED = "n/a"
SCORES = {
    "accuracy": "Accuracy",
    "balanced_error": "Balanced error",
    "macro_f1": "Macro F1",
    "ece": "ECE",
    "classwise_ece": "Classwise ECE",
    "brier": "Brier score",
    "nll": "NLL",
    "many": "Many",
    "medium": "Medium",
    "few": "Few",
}
"""The scores of a comparison and how they are headed."""
TARGET_TITLES = {"none": "mix not used", "estimated": "mix estimated", "oracle": "mix known"}
"""Titles of the target priors of `priorshift.evaluation.TARGET_PRIORS`."""
_PERCENT = frozenset({"accuracy", "balanced_error", "macro_f1", "many", "medium", "few"})
_LOWER_IS_BETTER = frozenset({"balanced_error", "ece", "classwise_ece", "brier", "nll"})


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        headers: One per column; the first column names the rows.
        rows: Rows of as many cells.
        caption: Content of the table, in a sentence.
        best: (row, column) of the cells to set in bold.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    best: frozenset[tuple[int, int]] = frozenset()


def comparison_table(comparison: Comparison, score: str = "accuracy") -> Table:
    """Methods with and without compensation by class mixes, and the effective sample size of each mix.

    Args:
        comparison: What `priorshift.evaluation.compare` returned.
        score: Name of the score to show. Shares are in percent. One that a mix does not have, such as the
            accuracy of an empty group, shows as n/a.

    Raises:
        ValueError: If the comparison has no such score.
    """
    unit = ", percent" if score in _PERCENT else ""
    better = "lowest" if score in _LOWER_IS_BETTER else "highest"
    cells = [
        [_score(comparison, row.spreads[mix], score) for mix in comparison.mixes] for row in comparison.rows
    ]
    sizes = tuple(f"{comparison.effective_sample_sizes[mix]:.0f}" for mix in comparison.mixes)
    return Table(
        headers=("Method", *map(mix_name, comparison.mixes)),
        rows=(
            *(
                (row.label, *(format_spread(spread, score) for spread in line))
                for row, line in zip(comparison.rows, cells, strict=True)
            ),
            ("Effective sample size", *sizes),
        ),
        caption=(
            f"{SCORES[score]}{unit}. {comparison.num_samples:,} test images weighted to each mix; "
            f"{_over_runs(comparison)}. Bold: {better} mean of a mix."
        ),
        best=_best(list(zip(*cells, strict=True)), lambda _: score),
    )


def score_table(comparison: Comparison, mix: str, scores: Sequence[str]) -> Table:
    """Methods with and without compensation by scores, on one mix."""
    cells = [[_score(comparison, row.spreads[mix], score) for score in scores] for row in comparison.rows]
    arrows = {score: "↓" if score in _LOWER_IS_BETTER else "↑" for score in scores}
    return Table(
        headers=("Method", *(f"{SCORES[score]} {arrows[score]}" for score in scores)),
        rows=tuple(
            (row.label, *(format_spread(spread, score) for spread, score in zip(line, scores, strict=True)))
            for row, line in zip(comparison.rows, cells, strict=True)
        ),
        caption=(
            f"{comparison.num_samples:,} test images weighted to the {mix_name(mix)} mix; "
            f"{_over_runs(comparison)}. ↓ lower is better, ↑ higher is better. Bold: best mean."
        ),
        best=_best(list(zip(*cells, strict=True)), lambda column: scores[column]),
    )


def mix_numbers(comparison: Comparison) -> Table:
    """Every number of the figure of accuracy over mixes."""
    return Table(
        headers=("Mix", "Effective sample size", *(row.label for row in comparison.rows)),
        rows=tuple(
            (
                mix_name(mix),
                f"{comparison.effective_sample_sizes[mix]:.1f}",
                *(_digits(row.spreads[mix]["accuracy"], 100, 2) for row in comparison.rows),
            )
            for mix in comparison.mixes
        ),
        caption=f"Accuracy, percent; {_over_runs(comparison)}.",
    )


def class_numbers(by_class: ByClass, caption: str, *, percent: bool) -> Table:
    """Every number of a figure by class."""
    scale, decimals = (100, 2) if percent else (1, 4)
    return Table(
        headers=("Class", "Training images", *(row.label for row in by_class.rows)),
        rows=tuple(
            (
                name,
                str(by_class.train_counts[index]),
                *(_digits(row.spreads[index], scale, decimals) for row in by_class.rows),
            )
            for index, name in enumerate(by_class.names)
        ),
        caption=caption,
    )


def reliability_numbers(diagram: PooledReliability) -> Table:
    """Every number of a reliability diagram."""
    bins = diagram.bins
    columns = (bins.edges[:-1], bins.edges[1:], bins.confidence, bins.accuracy)
    lines = zip(*(column.tolist() for column in columns), diagram.counts, strict=True)
    rows = [
        (f"{low:.2f} – {high:.2f}", f"{count:.1f}", f"{mean:.4f}", f"{right:.4f}", f"{right - mean:+.4f}")
        for low, high, mean, right, count in lines
        if count
    ]
    every = (sum(diagram.counts), diagram.confidence, diagram.accuracy, diagram.error)
    rows.append(("All", f"{every[0]:.1f}", f"{every[1]:.4f}", f"{every[2]:.4f}", f"ECE {every[3]:.4f}"))
    return Table(
        headers=("Confidence", "Predictions", "Mean confidence", "Accuracy", "Gap"),
        rows=tuple(rows),
        caption=(
            f"{diagram.label}: {diagram.num_runs} {'run' if diagram.num_runs == 1 else 'runs'} of "
            f"{diagram.num_samples:,} test images pooled; empty bins left out."
        ),
    )


def share_table(shares: Sequence[ClassShare], num_samples: int, level: float | None, caption: str) -> Table:
    """Carried, estimated and, where labels are known, true share of each class, in percent.

    Args:
        shares: What `priorshift.report.class_shares` returned, or some of it.
        num_samples: Target samples; so many digits are shown that one of them makes a difference.
        level: Confidence level of the intervals; None where there are none.
        caption: Caption of the table.
    """
    decimals = max(2, len(str(num_samples)) - 1)

    def percent(share: float) -> str:
        return f"{100 * share:.{decimals}f}"

    columns: dict[str, Callable[[ClassShare], str]] = {"Class": lambda share: share.label}
    if shares[0].name is not None:
        columns["Index"] = lambda share: str(share.index)
    columns["Carried"] = lambda share: percent(share.carried)
    columns["Estimated"] = lambda share: percent(share.estimated)
    if level is not None:
        columns[f"{100 * level:g} % interval"] = lambda share: (
            UNDEFINED if share.interval is None else " – ".join(map(percent, share.interval))
        )
    if shares[0].true is not None:
        columns["True"] = lambda share: UNDEFINED if share.true is None else percent(share.true)
        if level is not None:
            columns["Interval holds it"] = lambda share: "yes" if share.held else "no"
    return Table(
        headers=tuple(columns),
        rows=tuple(tuple(cell(share) for cell in columns.values()) for share in shares),
        caption=caption,
    )


def target_table(scores: Mapping[str, Scores], caption: str) -> Table:
    """Scores with the target mix not used, estimated and known, and the gap of the second to the third.

    Args:
        scores: What `priorshift.evaluation.scores_by_target_prior` returned.
        caption: Caption of the table.
    """
    shown = ("accuracy", "balanced_error", "nll", "ece")

    def cell(value: float | None, score: str) -> str:
        if value is None:
            return UNDEFINED
        return f"{100 * value:.2f}" if score in _PERCENT else f"{value:.4f}"

    def gap(score: str) -> float | None:
        estimated, oracle = scores["estimated"][score], scores["oracle"][score]
        if estimated is None or oracle is None:
            return None
        return estimated - oracle if score in _LOWER_IS_BETTER else oracle - estimated

    arrows = {score: "↓" if score in _LOWER_IS_BETTER else "↑" for score in shown}
    return Table(
        headers=("Target prior", *(f"{SCORES[score]} {arrows[score]}" for score in shown)),
        rows=(
            *(
                (words, *(cell(scores[known][score], score) for score in shown))
                for known, words in TARGET_TITLES.items()
            ),
            ("Oracle gap", *(_signed(cell(gap(score), score)) for score in shown)),
        ),
        caption=caption,
    )


def oracle_gap_table(rows: Sequence[OracleGapRow]) -> Table:
    """Accuracy of each method with each mix not used, estimated and known, and the oracle gap."""
    mixes = list(dict.fromkeys(row.mix for row in rows))
    lines: list[tuple[str, ...]] = []
    for method in dict.fromkeys(row.method for row in rows):
        by_mix = {row.mix: row for row in rows if row.method == method}
        for known, knowledge in TARGET_TITLES.items():
            accuracies = (by_mix[mix].accuracy[known].percent() for mix in mixes)
            lines.append((f"{method}, {knowledge}", *accuracies))
        gaps = (_signed(by_mix[mix].gap.percent()) for mix in mixes)
        lines.append((f"{method}, oracle gap in points", *gaps))
    sizes = " or ".join(dict.fromkeys(f"{row.size:,}" for row in rows))
    return Table(
        headers=("Method", *map(mix_name, mixes)),
        rows=tuple(lines),
        caption=(
            f"Accuracy, percent, on the test set weighted to each mix, which is estimated from {sizes} "
            f"unlabeled samples; {_over_gap_runs(rows)}. The oracle gap is accuracy with the mix known "
            "minus accuracy with it estimated."
        ),
    )


def oracle_gap_numbers(rows: Sequence[OracleGapRow], method: str) -> Table:
    """Every number of the figure of one method, and how far its estimates are off."""
    of_method = [row for row in rows if row.method == method]
    return Table(
        headers=("Mix", *(TARGET_TITLES.values()), "oracle gap", "error of the estimate", "sampling error"),
        rows=tuple(
            (
                mix_name(row.mix),
                *(_digits(row.accuracy[known], 100, 2) for known in TARGET_TITLES),
                _signed(_digits(row.gap, 100, 2)),
                _digits(row.error, 100, 2),
                _digits(row.sampling_error, 100, 2),
            )
            for row in of_method
        ),
        caption=(
            f"{method}: accuracy, percent; oracle gap, points; mean absolute error of the estimated shares, "
            "points, and that of the frequencies of the drawn labels, the sampling error; "
            f"{_over_gap_runs(of_method)}."
        ),
    )


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, with its caption below.

    Example:
        >>> table = Table(("Method", "uniform"), (("LADE", "81.2 ± 0.3"),), "Accuracy.", frozenset({(0, 1)}))
        >>> print(markdown(table))
        | Method | uniform |
        | :--- | ---: |
        | LADE | **81.2 ± 0.3** |
        <BLANKLINE>
        Accuracy.
        <BLANKLINE>
    """
    lines = [
        _line([_markdown_text(header) for header in table.headers]),
        _line((":---", *("---:",) * (len(table.headers) - 1))),
    ]
    for index, row in enumerate(table.rows):
        cells = [_markdown_text(cell) for cell in row]
        lines.append(_line([f"**{c}**" if (index, j) in table.best else c for j, c in enumerate(cells)]))
    return "\n".join([*lines, "", table.caption, ""])


def console(table: Table) -> "rich.table.Table":
    """The table for `rich`: deviations stand below means, so that eleven mixes fit into 80 columns."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, padding=0, caption=table.caption, caption_justify="left")
    drawn.add_column(Text(table.headers[0]), min_width=11)
    for header in table.headers[1:]:
        short = header.replace("forward:", "fwd\n").replace("backward:", "bwd\n")
        drawn.add_column(Text(short, justify="right"), justify="right", no_wrap=True)
    for index, row in enumerate(table.rows):
        cells = [Text(row[0])]
        for column, cell in enumerate(row[1:], start=1):
            mean, _, sd = cell.partition(" ± ")
            text = Text(mean, style="bold" if (index, column) in table.best else "")
            cells.append(text.append(f"\n±{sd}", style="not bold dim") if sd else text)
        drawn.add_row(*cells)
    return drawn


def mix_name(mix: str) -> str:
    """Name of a mix in tables and legends: as it is spelled; a file by its name without folders."""
    return PurePath(mix).name


def format_spread(spread: Spread | None, score: str) -> str:
    """The spread of a score as a cell, in percent where the score is a share."""
    if spread is None:
        return UNDEFINED
    return spread.percent() if score in _PERCENT else str(spread)


def _score(comparison: Comparison, scores: dict[str, Spread | None], score: str) -> Spread | None:
    if score not in scores:
        raise ValueError(f"Expected `score` to be one of {', '.join(scores)}, but got {score!r}.")
    return scores[score]


def _digits(spread: Spread | None, scale: int, decimals: int) -> str:
    if spread is None:
        return UNDEFINED
    sd = "" if spread.sd is None else f" ± {scale * spread.sd:.{decimals}f}"
    return f"{scale * spread.mean:.{decimals}f}{sd}"


def _signed(cell: str) -> str:
    """A number in text with a minus sign, unless it rounds to 0."""
    return re.sub("^-", "−", re.sub(r"^-(?=0\.0+( |$))", "", cell))


def _over_gap_runs(rows: Sequence[OracleGapRow]) -> str:
    runs = sorted({row.gap.runs for row in rows})
    draws = " or ".join(dict.fromkeys(str(row.draws) for row in rows))
    means = f"means over {draws} draws" if draws != "1" else "one draw"
    if runs[-1] == 1:
        return f"{means}, one run of each method"
    return f"{means}, mean ± sd over {' to '.join(map(str, dict.fromkeys((runs[0], runs[-1]))))} runs"


def _over_runs(comparison: Comparison) -> str:
    first = comparison.mixes[0]
    numbers = {
        row.method: spread.runs for row in comparison.rows if (spread := row.spreads[first]["accuracy"])
    }
    few, many = min(numbers.values()), max(numbers.values())
    if many == 1:
        return "one run of each method, so no spread over seeds"
    return f"mean ± sd over {many if few == many else f'{few} to {many}'} seeds"


def _best(
    columns: Sequence[Sequence[Spread | None]], score: Callable[[int], str]
) -> frozenset[tuple[int, int]]:
    best = set()
    for column, spreads in enumerate(columns):
        means = {index: spread.mean for index, spread in enumerate(spreads) if spread is not None}
        if means:
            extreme = (min if score(column) in _LOWER_IS_BETTER else max)(means.values())
            best |= {(index, column + 1) for index, mean in means.items() if mean == extreme}
    return frozenset(best)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_text(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
