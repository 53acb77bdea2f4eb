"""A table of slots that are filled anew, so that a change costs the cells that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from rich.text import Text
from textual.widgets import DataTable


class Keyed(Protocol):
    """A row, whose other fields are the columns."""

    @property
    def id(self) -> str:
        """Names it over all changes."""
        ...


Row = TypeVar("Row", bound=Keyed)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        key: the field of the row.
        rank: columns of a low rank are the last to go when it is narrow.
        most: cells that it may grow to when there is room.
    """

    key: str
    title: str
    width: int
    rank: int
    right: bool = False
    most: int = 0


_GAP = 2


def layout(width: int, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns that fit, in their order; what is left goes to those that may grow, from the left.

    A narrow column may stay where a wide one of a lower rank has to go.
    """
    left = width
    chosen: list[Column] = []
    for column in sorted(columns, key=lambda c: c.rank):
        if column.rank and left < column.width + _GAP:
            continue
        left -= column.width + _GAP
        chosen.append(column)
    kept = []
    for column in (c for c in columns if c in chosen):
        more = max(0, min(left, column.most - column.width))
        left -= more
        kept.append(replace(column, width=column.width + more))
    return tuple(kept)


class SlotTable(DataTable[Text], Generic[Row]):
    """Rows in their order; the cursor stays with its row.

    Args:
        name: its id.
        columns: all that there may be.
    """

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        super().__init__(id=name, cursor_type="row", zebra_stripes=True, cell_padding=1)
        self._all = columns
        self._items: list[Row] = []
        self._drawn: list[tuple[str, ...]] = []
        self._layout: tuple[Column, ...] = ()
        self._theme_name = ""

    @property
    def current(self) -> str | None:
        """The id of the row under the cursor."""
        row = self.cursor_row
        return self._items[row].id if 0 <= row < len(self._items) else None

    def tone(self, column: str, value: str) -> str:  # noqa: ARG002 - for those who inherit
        """The style of a cell."""
        return ""

    def show(self, rows: Sequence[Row]) -> None:
        """Draw rows in their order."""
        held = self.current
        self._lay_out()
        self._items = list(rows)
        for position, row in enumerate(rows):
            self._fill(position, row)
        while len(self._drawn) > len(rows):
            self._drawn.pop()
            self.remove_row(str(len(self._drawn)))
        if held is not None:
            self.go_to(held)

    def go_to(self, name: str) -> None:
        """Put the cursor on a row, if it is in the table."""
        for position, row in enumerate(self._items):
            if row.id == name and position != self.cursor_row:
                self.move_cursor(row=position, animate=False)

    def _lay_out(self) -> None:
        """Choose columns for the width there is."""
        room = (self.size.width or self.app.size.width) - self.scrollbar_size_vertical
        wanted = layout(room, self._all)
        theme = self.app.theme
        if (wanted, theme) == (self._layout, self._theme_name):
            return
        self._layout, self._theme_name = wanted, theme
        held = self.cursor_row
        self.clear(columns=True)
        for column in wanted:
            title = column.title.rjust(column.width) if column.right else column.title
            self.add_column(title, width=column.width, key=column.key)
        self._drawn = []
        for position, row in enumerate(self._items):
            self._fill(position, row)
        self.move_cursor(row=held, animate=False)

    def _fill(self, position: int, row: Row) -> None:
        values = tuple(str(getattr(row, c.key)) for c in self._layout)
        key = str(position)
        if position >= len(self._drawn):
            self.add_row(*map(self._cell, self._layout, values), key=key)
            self._drawn.append(values)
            return
        before = self._drawn[position]
        for column, old, new in zip(self._layout, before, values, strict=True):
            if old != new:
                self.update_cell(key, column.key, self._cell(column, new))
        self._drawn[position] = values

    def _cell(self, column: Column, value: str) -> Text:
        text = value.rjust(column.width) if column.right else value
        return Text(text, style=self.tone(column.key, value), no_wrap=True, overflow="ellipsis")
