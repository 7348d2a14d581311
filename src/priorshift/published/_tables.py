"""What a published table consists of, and how one is read from the text that shows it as it was printed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Measure = Literal["accuracy", "balanced_error", "ece", "classwise_ece", "brier", "nll"]
"""A score by its name in `priorshift.evaluation`."""


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        value: The number, in the unit of its column.
        digits: Decimals printed, zeros at the end included; show ours with as many.
        borrowed: The paper that the authors say they took the number from; None for their own.

    Example:
        >>> cell = Cell(34.4, digits=2, borrowed="Kang et al., ICLR 2020")
        >>> print(cell)
        34.40
    """

    value: float
    digits: int
    borrowed: str | None = None

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """What all numbers of a column have in common.

    Attributes:
        name: On the command line; unique within its table.
        heading: As the paper heads it, levels from the top separated by commas.
        dataset: Training set, by the name of its source on the command line.
        architecture: Backbone as the paper names it, spelled as torchvision and timm do.
        imbalance: Ratio of the largest to the smallest training class where it is a choice (the CIFAR sets).
        profile: Shape of the training counts where it is a choice: `"exp"` or `"step"`.
        epochs: Of training; None where the paper counts steps or does not say.
        group: The classes judged, grouped by their training count; `"all"` for every class.
        mix: Class mix of the test set, as `priorshift.shift.target_prior` reads it.
        measure: Which score.
    """

    name: str
    heading: str
    dataset: str
    architecture: str
    imbalance: float | None = None
    profile: Literal["exp", "step"] | None = None
    epochs: int | None = None
    group: Literal["all", "many", "medium", "few"] = "all"
    mix: str = "uniform"
    measure: Measure

    @property
    def percent(self) -> bool:
        """Whether the numbers are percentages; scores of `priorshift.evaluation` are shares."""
        return self.measure in ("accuracy", "balanced_error")


@dataclass(frozen=True)
class Row:
    """One method and its numbers.

    Attributes:
        name: On the command line; unique within its table.
        published: The name that the paper gives the method.
        method: Our training, a key of `priorshift.recipes.methods.METHODS`; None where we have none.
        compensated: Whether logits are moved to the test mix after training: by post-compensation (PC), by
            post-hoc logit adjustment, or because the method is LADE, whose Eq. 17 does so (where the test mix
            is uniform, that changes nothing).
        tau: Strength that the row states for its adjustment, its loss or its normalisation; `"best"` is the
            best one in hindsight, the papers' τ*.
        cells: One per column of the table, in order; None where the paper has no number.
    """

    name: str
    published: str
    method: str | None
    compensated: bool = False
    tau: float | Literal["best"] | None = None
    cells: tuple[Cell | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table; iterating goes over its rows.

    Attributes:
        name: On the command line.
        title: The paper's caption, shortened.
        paper: Authors, title and venue.
        place: Number of the table and section.
        measured: What the numbers are, in words, with the unit.
        trials: Trainings that a number is the mean of.
        columns: Settings, from left to right.
        rows: Methods, from top to bottom.
        notes: What a reader should know of single numbers, a sentence each.

    Example:
        >>> from priorshift.published import TABLES
        >>> table = TABLES["lade-table-2"]
        >>> table.value("pc-softmax", "100")
        45.3
        >>> print(table.cell("focal", "50"), "of", table.cell("focal", "50").borrowed)
        44.3 of Tang et al., NeurIPS 2020
        >>> [row.name for row in table if row.compensated]
        ['pc-softmax', 'lade']
    """

    name: str
    title: str
    paper: str
    place: str
    measured: str
    trials: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ValueError: If there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"{self.name} has no row {name!r}; it has {', '.join(row.name for row in self)}.")

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            ValueError: If there is none.
        """
        return self.columns[self._place(name)]

    def cell(self, row: str, column: str) -> Cell | None:
        """The number with its precision and source; None where the paper has none.

        Raises:
            ValueError: If there is no such row or column.
        """
        return self.row(row).cells[self._place(column)]

    def value(self, row: str, column: str) -> float | None:
        """The number alone; None where the paper has none.

        Raises:
            ValueError: If there is no such row or column.
        """
        cell = self.cell(row, column)
        return None if cell is None else cell.value

    def _place(self, column: str) -> int:
        names = [other.name for other in self.columns]
        if column not in names:
            raise ValueError(f"{self.name} has no column {column!r}; it has {', '.join(names)}.")
        return names.index(column)


def read_rows(
    printed: str, columns: Sequence[Column], methods: Sequence[Row], marks: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    r"""The rows of a table that is shown as text, a line for each and a bar between cells.

    Args:
        printed: First a line with the names of the columns, then one per method that begins with its
            published name. A cell is a number, maybe followed by a mark, or a dash.
        columns: The columns that the first line must name.
        methods: A row without cells for each published name.
        marks: Mark → the paper that numbers with this mark were taken from.

    Raises:
        ValueError: If the columns are not those, or a line has another number of cells.

    Example:
        >>> columns = [Column(name="100", heading="100", dataset="", architecture="", measure="accuracy")]
        >>> rows = read_rows("Method | 100\nERM | 41.0", columns, [Row("softmax", "ERM", "softmax")])
        >>> rows[0].name, rows[0].cells[0].value
        ('softmax', 41.0)
    """
    (_, *names), *lines = [
        [part.strip() for part in line.split("|")] for line in printed.strip().splitlines()
    ]
    if names != [column.name for column in columns]:
        raise ValueError(f"Expected the columns {[column.name for column in columns]}, but got {names}.")
    by_name = {method.published: method for method in methods}
    rows = []
    for published, *cells in lines:
        if len(cells) != len(columns):
            raise ValueError(f"Expected {len(columns)} cells for {published!r}, but got {len(cells)}.")
        rows.append(replace(by_name[published], cells=tuple(_read(cell, marks or {}) for cell in cells)))
    return tuple(rows)


def _read(cell: str, marks: Mapping[str, str]) -> Cell | None:
    if cell == "–":
        return None
    parts = re.fullmatch(r"(\d+\.(\d+))(\D?)", cell)
    if parts is None:
        raise ValueError(f"Expected a decimal number with at most one mark, or a dash, but got {cell!r}.")
    number, decimals, mark = parts.groups()
    return Cell(float(number), len(decimals), marks[mark] if mark else None)
