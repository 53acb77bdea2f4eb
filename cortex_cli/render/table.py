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
) -> str:
    """Return one line per row, with two spaces between columns and without truncation."""
    visible = [c for c in columns if wide or not c.wide]
    lines: list[list[tuple[str, Tone | None]]] = []
    if headers:
        lines.append([(c.title, Tone.DIM) for c in visible])
    lines += [[_cell(column, row) for column in visible] for row in rows]
    widths = [max((len(line[i][0]) for line in lines), default=0) for i in range(len(visible))]
    return "\n".join(_line(line, visible, widths, colors) for line in lines)


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
    for (text, tone), column, width in zip(cells, columns, widths, strict=True):
        gap = " " * (width - len(text))
        colored = colors.tone(text, tone)
        parts.append(gap + colored if column.right else colored + gap)
    return "  ".join(parts).rstrip()
