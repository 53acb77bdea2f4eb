"""Aligned tables without borders, for people as well as grep and awk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cortex_cli.color import Colors, Tone
from cortex_cli.terminal import neutralize_line

Row = TypeVar("Row")


def brief(text: str) -> str:
    """Return the first line of an error, without the engine output that can follow."""
    return neutralize_line(text.partition("\n")[0].removesuffix(":"))


MIN_WIDTH = 8
"""Narrowest width to which a column of text is cut."""


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a table.

    Attributes:
        title: title in the header, in upper case.
        cell: returns the text of a row's cell.
        right: whether the cells are right-aligned, for numbers.
        wide: whether the column is visible by `-o wide` only.
        tone: returns the color of a row's cell.
    """

    title: str
    cell: Callable[[Row], str]
    right: bool = False
    wide: bool = False
    tone: Callable[[Row], Tone | None] = lambda _row: None


def table(
    columns: Sequence[Column[Row]],
    rows: Iterable[Row],
    *,
    colors: Colors,
    headers: bool = True,
    wide: bool = False,
    max_width: int | None = None,
) -> str:
    """Return one line per row, with two spaces between columns.

    Args:
        columns: the columns.
        rows: the rows.
        colors: colors of the cells.
        headers: whether the first line has the titles.
        wide: whether to show columns that are for `-o wide` only.
        max_width: width of the terminal; longer texts are cut so that no line wraps. None cuts nothing.
    """
    visible = [c for c in columns if wide or not c.wide]
    lines: list[list[tuple[str, Tone | None]]] = []
    if headers:
        lines.append([(c.title, Tone.DIM) for c in visible])
    lines += [[_cell(column, row) for column in visible] for row in rows]
    widths = [max((len(line[i][0]) for line in lines), default=0) for i in range(len(visible))]
    if max_width is not None:
        widths = fit_widths(widths, [c.right for c in visible], max_width)
    return "\n".join(_line(line, visible, widths, colors) for line in lines)


def fit_widths(widths: Sequence[int], right: Sequence[bool], max_width: int) -> list[int]:
    """Return widths of columns that fit on a line, where the widest columns of text give way first.

    Columns of numbers are never cut, because a cut number is a wrong one, and no column becomes narrower than
    `MIN_WIDTH`; if that is too wide still, the last columns are dropped.
    """
    fitted = list(widths)
    flexible = [i for i in range(len(fitted)) if not right[i] and fitted[i] > MIN_WIDTH]
    while flexible and _total(fitted) > max_width:
        widest = max(flexible, key=lambda i: fitted[i])
        fitted[widest] -= 1
        if fitted[widest] <= MIN_WIDTH:
            flexible.remove(widest)
    while len(fitted) > 1 and _total(fitted) > max_width:
        fitted.pop()
    return fitted


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _cell(column: Column[Row], row: Row) -> tuple[str, Tone | None]:
    text = neutralize_line(column.cell(row))
    return (text, column.tone(row)) if text else ("–", Tone.DIM)


def _line(
    cells: Sequence[tuple[str, Tone | None]],
    columns: Sequence[Column[Row]],
    widths: Sequence[int],
    colors: Colors,
) -> str:
    parts = []
    # Fewer widths than columns: the last columns do not fit.
    for (full, tone), column, width in zip(cells, columns, widths, strict=False):
        text = full if len(full) <= width else full[: width - 1] + "…"
        gap = " " * (width - len(text))
        colored = colors.tone(text, tone)
        parts.append(gap + colored if column.right else colored + gap)
    return "  ".join(parts).rstrip()
