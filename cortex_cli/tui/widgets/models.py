"""The models table: slots that are filled anew, so that a change costs the cells that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.text import Text
from textual.widgets import DataTable

from cortex_cli.tui.view import ModelRow


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        key: the field of `ModelRow`.
        rank: columns of a low rank are the last to go when it is narrow.
    """

    key: str
    title: str
    width: int
    rank: int
    right: bool = False


COLUMNS = (
    Column("badge", "", 2, 0),
    Column("name", "NAME", 18, 0),
    Column("state", "STATE", 9, 0),
    Column("place", "NODE/DEVICE", 12, 2),
    Column("vram", "VRAM", 6, 3, right=True),
    Column("requests", "REQ/S", 5, 5, right=True),
    Column("tokens", "TOK/S", 5, 6, right=True),
    Column("ttft", "TTFT", 6, 7, right=True),
    Column("queue", "Q", 5, 1, right=True),
    Column("until", "UNTIL", 16, 4),
)
_GAP = 2
_LONGEST_NAME = 44


def layout(width: int) -> tuple[Column, ...]:
    """The columns that fit, in their order; what is left goes to the name first, then to the last column."""
    left = width
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if column.rank and left < column.width + _GAP:
            break
        left -= column.width + _GAP
        chosen.append(column)
    kept = [c for c in COLUMNS if c in chosen]
    more = max(0, min(left, _LONGEST_NAME - COLUMNS[1].width))
    rest = max(0, left - more)
    return tuple(
        replace(c, width=c.width + (more if c.key == "name" else rest if c.key == "until" else 0))
        for c in kept
    )


_STATES = {
    "ready": "success",
    "loading": "warning",
    "draining": "warning",
    "stopping": "warning",
    "failed": "error",
}


class ModelTable(DataTable[Text]):
    """The catalogue, a line a model; the cursor stays with its model."""

    def __init__(self) -> None:
        super().__init__(id="models", cursor_type="row", zebra_stripes=True, cell_padding=1)
        self._rows: list[ModelRow] = []
        self._shown: list[tuple[str, ...]] = []
        self._layout: tuple[Column, ...] = ()
        self._theme_name = ""

    @property
    def current(self) -> str | None:
        """The model under the cursor."""
        row = self.cursor_row
        return self._rows[row].id if 0 <= row < len(self._rows) else None

    def show(self, rows: Sequence[ModelRow]) -> None:
        """Draw rows in their order."""
        held = self.current
        self._lay_out()
        self._rows = list(rows)
        for position, row in enumerate(rows):
            self._fill(position, row)
        while len(self._shown) > len(rows):
            self._shown.pop()
            self.remove_row(str(len(self._shown)))
        if held is not None:
            self.go_to(held)

    def go_to(self, model: str) -> None:
        """Put the cursor on a model, if it is in the table."""
        for position, row in enumerate(self._rows):
            if row.id == model and position != self.cursor_row:
                self.move_cursor(row=position, animate=False)

    def _lay_out(self) -> None:
        """Choose columns for the width there is."""
        wanted = layout((self.size.width or self.app.size.width) - self.scrollbar_size_vertical)
        theme = self.app.theme
        if (wanted, theme) == (self._layout, self._theme_name):
            return
        self._layout, self._theme_name = wanted, theme
        held = self.cursor_row
        self.clear(columns=True)
        for column in wanted:
            title = column.title.rjust(column.width) if column.right else column.title
            self.add_column(title, width=column.width, key=column.key)
        self._shown = []
        for position, row in enumerate(self._rows):
            self._fill(position, row)
        self.move_cursor(row=held, animate=False)

    def _fill(self, position: int, row: ModelRow) -> None:
        values = tuple(str(getattr(row, c.key)) for c in self._layout)
        key = str(position)
        if position >= len(self._shown):
            self.add_row(*map(self._cell, self._layout, values), key=key)
            self._shown.append(values)
            return
        before = self._shown[position]
        for column, old, new in zip(self._layout, before, values, strict=True):
            if old != new:
                self.update_cell(key, column.key, self._cell(column, new))
        self._shown[position] = values

    def _cell(self, column: Column, value: str) -> Text:
        style = ""
        if column.key == "state" and value in _STATES:
            style = self.app.theme_variables[_STATES[value]]
        elif column.key == "badge":
            style = f"bold {self.app.theme_variables['accent']}"
        text = value.rjust(column.width) if column.right else value
        return Text(text, style=style, no_wrap=True, overflow="ellipsis")
