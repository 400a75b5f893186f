"""Tables of results. Each is made once; the terminal, the page, notebooks and CSV files all show it."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


def times(shape: Sequence[int]) -> str:
    """A shape as people write it, such as 3 x 64 x 64."""
    return " x ".join(map(str, shape)) or "none"


def number(value: float | None, spec: str) -> str:
    """A number in a format. A dash stands for one that is unknown or not finite, which `results.json` keeps as null."""
    return "–" if value is None or not math.isfinite(value) else format(value, spec)


def rounded(value: Any) -> str:
    """A value as a reader sees it: four significant digits, or a dash if it is unknown."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(rounded(item) for item in value)
    return "–" if value is None else str(value)


@dataclass(frozen=True)
class Cell:
    """A value of a table that is shown in its own way.

    Attributes:
        value: the value that the CSV holds.
        spec: format of a number, such as ".3f"; by default four significant digits.
        best: whether the value is the best of its column. It is bold on a page and starred in a terminal.
        note: more about the value, such as its interval. A page shows it in small print.
        hint: further details. A page shows them while the pointer rests on the value.
    """

    value: Any
    spec: str = ""
    best: bool = False
    note: str = ""
    hint: str = ""

    @property
    def text(self) -> str:
        """The value as a reader sees it."""
        return number(self.value, self.spec) if self.spec else rounded(self.value)


@dataclass(frozen=True)
class Table:
    """Rows under a head. The first cell of a row names the row. A row of one cell is a heading for the rows below it.

    Attributes:
        title: what the table shows.
        rows: the rows, each of values or cells.
        head: the names of the columns; there is no head if it is empty.
        lead: how to read the table, in a sentence or two.
    """

    title: str
    rows: Sequence[Sequence[Any]]
    head: Sequence[str] = ()
    lead: str = ""

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with every value in a cell."""
        return [[value if isinstance(value, Cell) else Cell(value) for value in row] for row in self.rows]

    def to_text(self) -> str:
        """The table in columns under its title, for a terminal."""
        rows = [[("*" if cell.best else "") + cell.text for cell in row] for row in self.cells]
        lines = [list(self.head), *rows] if self.head else rows
        count = max(map(len, lines), default=0)
        filled = [row for row in lines if len(row) == count]
        widths = [max(len(row[i]) for row in filled) for i in range(count)]
        right = count > 2 or bool(self.head)  # a list of names and values is aligned to the left

        def line(row: Sequence[str]) -> str:
            rest = [text.rjust(w) if right else text for text, w in zip(row[1:], widths[1:], strict=False)]
            return "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()

        shown = [line(row) if len(row) == count else f"-- {row[0]}" for row in lines]
        return "\n".join([*([self.title] if self.title else ()), *([self.lead] if self.lead else ()), *shown])

    def to_csv(self) -> str:
        """The table as CSV, with every digit. Headings of groups are left out."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([self.head] if self.head else [])
        writer.writerows([cell.value for cell in row] for row in self.cells if len(row) > 1)
        return out.getvalue()


def as_text(tables: Iterable[Table]) -> str:
    """Tables one below the other, for a terminal."""
    return "\n\n".join(table.to_text() for table in tables)
