"""Print tables of at most 80 columns, row by row while they are computed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TABLE_WIDTH = 80
"""Columns of a terminal that the tables fit."""
COLUMN_GAP = 2


@dataclass(frozen=True)
class TableColumn:
    """A column with the width that its cells need at most."""

    title: str
    width: int = 0

    @property
    def room(self) -> int:
        """The width of the column, title included."""
        return max(len(self.title), self.width)


def fit_columns(needed: Sequence[TableColumn], others: Iterable[TableColumn]) -> list[TableColumn]:
    """Return the needed columns, and those of the others, the first ones first, that fit the terminal beside them."""
    chosen = [*needed]
    for column in others:
        if sum(one.room + COLUMN_GAP for one in (*chosen, column)) - COLUMN_GAP <= TABLE_WIDTH:
            chosen.append(column)
    return chosen


def format_cells(columns: Sequence[TableColumn], cells: Sequence[str]) -> str:
    """Return a line: the first cell to the left, the others to the right."""
    (first, name), *rest = zip(columns, cells, strict=True)
    numbers = [f"{cell:>{column.room}}" for column, cell in rest]
    return (" " * COLUMN_GAP).join([f"{name:{first.room}}", *numbers]).rstrip()


def format_titles(columns: Sequence[TableColumn]) -> str:
    """Return the first line of the table."""
    return format_cells(columns, [column.title for column in columns])


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a whole table whose rows are known."""
    columns = [TableColumn(cells[0], max(map(len, cells))) for cells in zip(head, *rows, strict=True)]
    return "\n".join([format_titles(columns), *(format_cells(columns, row) for row in rows)])
