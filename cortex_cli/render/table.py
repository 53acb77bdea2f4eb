"""Rows as an aligned table without lines, so that grep, awk and people can read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cortex_cli.color import Paint, Tone

Row = TypeVar("Row")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def printable(text: str) -> str:
    """The text on one line without control characters: names and errors come from other hosts."""
    return _CONTROL.sub(" ", text).strip()


def brief(text: str) -> str:
    """The first line of an error, for a place where an engine's last words would be too much."""
    return printable(text.partition("\n")[0].removesuffix(":"))


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a table.

    Attributes:
        title: in upper case, as it stands in the header.
        cell: the text of a row.
        right: aligned right, for numbers.
        wide: shown by `-o wide` only.
        tone: the colour of a row's cell.
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
    paint: Paint,
    headers: bool = True,
    wide: bool = False,
) -> str:
    """One line a row, two spaces between columns, nothing cut off."""
    shown = [c for c in columns if wide or not c.wide]
    lines: list[list[tuple[str, Tone | None]]] = []
    if headers:
        lines.append([(c.title, Tone.DIM) for c in shown])
    lines += [[_cell(column, row) for column in shown] for row in rows]
    widths = [max((len(line[i][0]) for line in lines), default=0) for i in range(len(shown))]
    return "\n".join(_line(line, shown, widths, paint) for line in lines)


def _cell(column: Column[Row], row: Row) -> tuple[str, Tone | None]:
    text = printable(column.cell(row))
    return (text, column.tone(row)) if text else ("–", Tone.DIM)


def _line(
    cells: Sequence[tuple[str, Tone | None]],
    columns: Sequence[Column[Row]],
    widths: Sequence[int],
    paint: Paint,
) -> str:
    parts = []
    for (text, tone), column, width in zip(cells, columns, widths, strict=True):
        gap = " " * (width - len(text))
        painted = paint.tone(text, tone)
        parts.append(gap + painted if column.right else painted + gap)
    return "  ".join(parts).rstrip()
