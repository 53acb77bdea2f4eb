"""A table whose cursor stays with its row when the order changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from typing_extensions import override

from cortex_cli.tui.lazy_rows import LazyRows
from cortex_cli.tui.widgets.lines import Lines, Spans, merge

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        key: field of the row.
        width: minimum width in cells.
        rank: narrow terminals drop the columns with the highest ranks first; 0 is never dropped.
        max_width: width that the column can grow to.
    """

    key: str
    title: str
    width: int
    rank: int
    right: bool = False
    max_width: int = 0


_GAP = 2


def layout(width: int, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns that fit, in their order; the remaining width goes to columns that can grow, from the left.

    A narrow column can stay when a wider one of a lower rank is dropped.
    """
    remaining = width
    chosen: list[Column] = []
    for column in sorted(columns, key=lambda c: c.rank):
        if column.rank and remaining < column.width + _GAP:
            continue
        remaining -= column.width + _GAP
        chosen.append(column)
    columns_shown = []
    for column in (c for c in columns if c in chosen):
        extra = max(0, min(remaining, column.max_width - column.width))
        remaining -= extra
        columns_shown.append(replace(column, width=column.width + extra))
    return tuple(columns_shown)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Pad or truncate text to exactly `width` cells, at least one."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    gap = " " * (width - length)
    return gap + text if right else text + gap


class Table(Lines, Generic[Row], can_focus=True):
    """Rows below a header with the titles of their columns.

    Args:
        name: id of the widget.
        columns: all columns; the width decides which are shown.
    """

    HEADER_LINES = 1
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

    STICKY_TOP: ClassVar[bool] = False
    """Whether a cursor on the first row stays there when other rows move up, instead of following its row."""

    cursor_row: reactive[int] = reactive(0, repaint=False)

    class Highlighted(Message):
        """The cursor moved to another row."""

    class Chosen(Message):
        """The row under the cursor was chosen, by enter or a second click."""

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        super().__init__(name)
        self._all_columns = columns
        self._rows: LazyRows[Row] = LazyRows()
        self._layout: tuple[Column, ...] = ()
        self._layout_key: tuple[object, ...] = ()

    # -- rows ---------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def current(self) -> str | None:
        """The id of the row under the cursor."""
        return self._rows.ids[self.cursor_row] if self._rows else None

    def cell_style(self, column: str, value: str) -> str:  # noqa: ARG002 - for subclasses
        """Return the style of a cell."""
        return ""

    def show(self, rows: LazyRows[Row]) -> None:
        """Show rows."""
        current = self.current
        self._lay_out()
        self._rows = rows
        self.redraw(len(rows))
        self.cursor_row = self.cursor_row  # validates it: there can be fewer rows now
        if current is not None and not (self.STICKY_TOP and self.cursor_row == 0):
            self.go_to(current)

    def go_to(self, name: str) -> None:
        """Move the cursor to a row, if the row is in the table."""
        if name != self.current and name in self._rows.ids:
            self.cursor_row = self._rows.ids.index(name)

    def _lay_out(self) -> None:
        """Choose the columns for the current width."""
        width = self.scrollable_content_region.width or self.app.size.width
        key = (width, self.app.theme)
        if key != self._layout_key:
            self._layout_key = key
            self._layout = layout(width, self._all_columns)
            self.redraw_all()

    @override
    def spans(self, index: int) -> Spans:
        if index < 0:
            titles = (fit(c.title, c.width, right=c.right) for c in self._layout)
            return (("".join(f" {title} " for title in titles), ""),)
        row = self._rows[index]
        cells = []
        for column in self._layout:
            value = str(getattr(row, column.key))
            text = f" {fit(value, column.width, right=column.right)} "
            # The colors of cells are unreadable on the color of the cursor.
            cells.append(
                (text, "" if index == self.cursor_row else self.cell_style(column.key, value))
            )
        return merge(cells)

    @override
    def background_class(self, index: int) -> str:
        if index < 0:
            return "table--header"
        if index == self.cursor_row:
            return "table--cursor"
        return "table--odd" if index % 2 else "table--even"

    # -- the cursor --------------------------------------------------------------------------

    def validate_cursor_row(self, row: int) -> int:
        """Keep the cursor within the rows."""
        return max(0, min(row, len(self._rows) - 1))

    def watch_cursor_row(self, old: int, new: int) -> None:
        """Redraw both rows and scroll to the cursor."""
        self.redraw_line(old)
        self.redraw_line(new)
        self._scroll_to_cursor()
        self.post_message(self.Highlighted())

    @override
    def on_resize(self) -> None:
        self._lay_out()
        self._scroll_to_cursor()

    def _scroll_to_cursor(self) -> None:
        first, page = round(self.scroll_y), self.page
        if self.cursor_row < first:
            self.scroll_to(y=self.cursor_row, animate=False)
        elif page and self.cursor_row >= first + page:
            self.scroll_to(y=self.cursor_row - page + 1, animate=False)

    @override
    def action_move(self, lines: int) -> None:
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
        """Choose the row under the cursor."""
        if self._rows:
            self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row that is clicked, or choose it if the cursor is there."""
        position = event.get_content_offset(self)
        if position is None or position.y < self.HEADER_LINES:
            return
        row = position.y - self.HEADER_LINES + round(self.scroll_y)
        if row == self.cursor_row:
            self.action_choose()
        elif row < len(self._rows):
            self.cursor_row = row
