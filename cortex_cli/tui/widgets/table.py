"""A table of rows whose cursor stays with its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive

from cortex_cli.tui.lazy_rows import Rows
from cortex_cli.tui.widgets.lines import Lines, Pieces, joined

Row = TypeVar("Row")


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


def fitted(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly so many cells, at least one."""
    taken = cell_len(text)
    if taken > width:
        return set_cell_size(text, width - 1) + "…"
    gap = " " * (width - taken)
    return gap + text if right else text + gap


class Table(Lines, Generic[Row], can_focus=True):
    """Rows in their order below the titles of their columns.

    Args:
        name: its id.
        columns: all that there may be.
    """

    HEADS = 1
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *("table--header", "table--odd", "table--even", "table--cursor")
    }
    DEFAULT_CSS = """
    Table {
        background: $surface;
        color: $foreground;
        &:focus {
            background-tint: $foreground 5%;
            & > .table--cursor {
                background: $block-cursor-background;
                color: $block-cursor-foreground;
                text-style: $block-cursor-text-style;
            }
            & > .table--header { background-tint: $foreground 5%; }
        }
        & > .table--header { text-style: bold; background: $panel; color: $foreground; }
        &:ansi > .table--header { background: ansi_bright_blue; color: ansi_default; }
        & > .table--even { background: $surface-lighten-1 50%; }
        &:dark > .table--even { background: $surface-darken-1 40%; }
        & > .table--cursor {
            background: $block-cursor-blurred-background;
            color: $block-cursor-blurred-foreground;
            text-style: $block-cursor-blurred-text-style;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "up", show=False),
        Binding("down", "move(1)", "down", show=False),
        Binding("pageup", "turn(-1)", "page up", show=False),
        Binding("pagedown", "turn(1)", "page down", show=False),
        Binding("home", "first", "first", show=False),
        Binding("end", "last", "last", show=False),
        Binding("enter", "choose", "choose", show=False),
    ]

    RESTS_ON_TOP: ClassVar[bool] = False
    """A cursor on the first row stays there, whatever comes to stand in it, instead of going with its row."""

    cursor_row: reactive[int] = reactive(0, repaint=False)

    class Highlighted(Message):
        """The cursor moved to another line."""

    class Chosen(Message):
        """The row under the cursor was asked for, by enter or a second click."""

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        super().__init__(name)
        self._all = columns
        self._rows: Rows[Row] = Rows()
        self._layout: tuple[Column, ...] = ()
        self._looks: tuple[object, ...] = ()

    # -- what it shows -----------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    @property
    def current(self) -> str | None:
        """The id of the row under the cursor."""
        return self._rows.ids[self.cursor_row] if self._rows else None

    def tone(self, column: str, value: str) -> str:  # noqa: ARG002 - for those who inherit
        """The style of a cell."""
        return ""

    def show(self, rows: Rows[Row]) -> None:
        """Draw rows in their order."""
        held = self.current
        self._lay_out()
        self._rows = rows
        self.redraw(len(rows))
        self.cursor_row = self.cursor_row  # it may be beyond the last
        if held is not None and not (self.RESTS_ON_TOP and self.cursor_row == 0):
            self.go_to(held)

    def go_to(self, name: str) -> None:
        """Put the cursor on a row, if it is in the table."""
        if name != self.current and name in self._rows.ids:
            self.cursor_row = self._rows.ids.index(name)

    def _lay_out(self) -> None:
        """Choose columns for the width there is."""
        room = self.scrollable_content_region.width or self.app.size.width
        looks = (room, self.app.theme)
        if looks != self._looks:
            self._looks = looks
            self._layout = layout(room, self._all)
            self.redraw_all()

    def pieces(self, index: int) -> Pieces:
        """See `Lines.pieces`."""
        if index < 0:
            titles = (fitted(c.title, c.width, right=c.right) for c in self._layout)
            return (("".join(f" {title} " for title in titles), ""),)
        row = self._rows[index]
        cells = []
        for column in self._layout:
            value = str(getattr(row, column.key))
            text = f" {fitted(value, column.width, right=column.right)} "
            # The cursor has a colour of its own, on which those of the cells can't be read.
            cells.append((text, "" if index == self.cursor_row else self.tone(column.key, value)))
        return joined(cells)

    def ground(self, index: int) -> str:
        """See `Lines.ground`."""
        if index < 0:
            return "table--header"
        if index == self.cursor_row:
            return "table--cursor"
        return "table--odd" if index % 2 else "table--even"

    # -- the cursor --------------------------------------------------------------------------

    def validate_cursor_row(self, row: int) -> int:
        """The cursor is on a row, where there are any."""
        return max(0, min(row, len(self._rows) - 1))

    def watch_cursor_row(self, before: int, after: int) -> None:
        """Draw both lines, and have the cursor seen."""
        self.redraw_line(before)
        self.redraw_line(after)
        self._follow()
        self.post_message(self.Highlighted())

    def on_resize(self) -> None:
        """Choose columns for the new width, and keep the cursor on the screen."""
        self._lay_out()
        self._follow()

    def _follow(self) -> None:
        first, page = round(self.scroll_y), self.page
        if self.cursor_row < first:
            self.scroll_to(y=self.cursor_row, animate=False)
        elif page and self.cursor_row >= first + page:
            self.scroll_to(y=self.cursor_row - page + 1, animate=False)

    def action_move(self, lines: int) -> None:
        """Move the cursor."""
        self.cursor_row += lines

    def action_turn(self, pages: int) -> None:
        """Move the cursor by pages."""
        self.cursor_row += pages * max(1, self.page - 1)

    def action_first(self) -> None:
        """Move the cursor to the first row."""
        self.cursor_row = 0

    def action_last(self) -> None:
        """Move the cursor to the last row."""
        self.cursor_row = len(self._rows) - 1

    def action_choose(self) -> None:
        """Ask for the row under the cursor."""
        if self._rows:
            self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on a row, or choose the one that has it."""
        at = event.get_content_offset(self)
        if at is None or at.y < self.HEADS:
            return
        row = at.y - self.HEADS + round(self.scroll_y)
        if row == self.cursor_row:
            self.action_choose()
        elif row < len(self._rows):
            self.cursor_row = row
