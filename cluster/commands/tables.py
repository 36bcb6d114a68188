"""Tables that never cut a heading or a cell, for terminals of any width.

If the columns do not fit side by side, headings and the cells of some columns are broken at spaces. A table
that is still too wide is printed in its full width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell: TypeAlias = str | Text
"""A plain string, or a Text with a style."""

_GAP = 2
"""Blanks between two columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    heading: str
    is_number: bool = True
    """Whether the column is aligned to the right."""
    is_folded: bool = False
    """Whether cells may be broken at spaces. Headings always may."""


def make_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> Table:
    """A table that is at most `width` wide, unless its longest words need more."""
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    texts = [[row[index].plain for row in cells] for index in range(len(columns))]
    widths = _widths(columns, texts, width)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        width=sum(widths) + _GAP * (len(columns) - 1),
    )
    for column, column_width in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.heading), justify="right" if column.is_number else "left", width=column_width
        )
    for row in cells:
        table.add_row(*row)
    return table


def show_table(
    console: Console, title: Cell, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]
) -> None:
    """Print a title, which may be empty, and a table below it."""
    if title:
        console.print(Text(title, "bold") if isinstance(title, str) else title, overflow="fold")
    # The table is not cropped: a row that is too wide goes on in the next line of the terminal.
    console.print(make_table(columns, rows, console.width), crop=False, no_wrap=True)
    console.print()


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """The width of each column: its longest line, or less if all together are too wide. The widest shrinks
    first."""
    wanted = [
        max(map(cell_len, (column.heading, *cells))) for column, cells in zip(columns, texts, strict=True)
    ]
    least = [_least(column, cells) for column, cells in zip(columns, texts, strict=True)]
    excess = sum(wanted) + _GAP * (len(columns) - 1) - width
    while excess > 0:
        spare = [
            (have - need > 0, have, index)
            for index, (have, need) in enumerate(zip(wanted, least, strict=True))
        ]
        can_shrink, _, index = max(spare)
        if not can_shrink:
            break
        wanted[index] -= 1
        excess -= 1
    return wanted


def _least(column: Column, cells: Sequence[str]) -> int:
    """The smallest width of a column: its longest word, or its longest cell if cells are not broken."""
    parts = [word for cell in cells for word in cell.split(" ")] if column.is_folded else cells
    return max(map(cell_len, (*column.heading.split(" "), *parts)))
