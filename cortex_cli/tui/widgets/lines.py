"""Lines that are made when they come on the screen, and drawn when they say something else than before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

Piece = tuple[str, str]
"""Text, and how it looks in Rich's words; "" as what is beneath it."""

Pieces = tuple[Piece, ...]


class Lines(ScrollView):
    """A column of lines that scrolls.

    Who inherits says how many there are with `redraw`, and makes each with `pieces`. Textual's own table draws all
    that it shows whenever one cell changes; on a busy fleet that was most of what the screen cost.
    """

    DEFAULT_CSS = "Lines { overflow-x: hidden; }"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--ground"}

    HEADS: ClassVar[int] = 0
    """Lines at the top that stay there."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self._count = 0
        self._drawn: dict[int, Pieces] = {}

    def pieces(self, index: int) -> Pieces:
        """A line, from left to right; negative for those that stay at the top."""
        raise NotImplementedError

    def ground(self, index: int) -> str:  # noqa: ARG002 - for those who inherit
        """The component class whose style is beneath a line."""
        return "lines--ground"

    @property
    def on_screen(self) -> range:
        """The lines that can be seen now, but for those that stay at the top."""
        first = round(self.scroll_y)
        return range(first, max(first, min(self._count, first + self.page)))

    @property
    def page(self) -> int:
        """How many lines can be seen at once."""
        return max(0, self.scrollable_content_region.height - self.HEADS)

    def action_move(self, lines: int) -> None:
        """Scroll."""
        self.scroll_relative(y=lines, animate=False)

    def on_resize(self) -> None:
        """Make all lines anew: they may be made for the room that there is."""
        self.redraw_all()

    def redraw(self, count: int) -> None:
        """Draw those lines on the screen that are not as they were.

        Args:
            count: how many lines there are now.
        """
        if count != self._count:
            self._count = count
            self.virtual_size = Size(0, self.HEADS + count)
            self.refresh()
        drawn = {index: self.pieces(index) for index in self.on_screen}
        for index, pieces in drawn.items():
            if pieces != self._drawn.get(index):
                self.refresh_line(self.HEADS + index)
        self._drawn = drawn

    def redraw_line(self, index: int) -> None:
        """Draw a line anew, whatever it says."""
        self._drawn.pop(index, None)
        self.refresh_line(self.HEADS + index)

    def redraw_all(self) -> None:
        """Draw every line, as the room or the looks are not what they were."""
        self._drawn.clear()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """See `Widget.render_line`."""
        index = y - self.HEADS
        if index >= 0:
            index += round(self.scroll_y)
        width = self.scrollable_content_region.width
        if index >= self._count:
            return Strip.blank(width, self.get_component_rich_style("lines--ground"))
        pieces = self._drawn.get(index)
        if pieces is None:
            pieces = self._drawn[index] = self.pieces(index)
        ground = self.get_component_rich_style(self.ground(index))
        segments = [Segment(text, ground + _style(style)) for text, style in pieces]
        return Strip(segments).adjust_cell_length(width, ground)


@lru_cache(256)
def _style(words: str) -> Style:
    return Style.parse(words)


def joined(pieces: Sequence[Piece]) -> Pieces:
    """The same with neighbours of one style as one piece: less to draw."""
    found: list[Piece] = []
    for text, style in pieces:
        if found and found[-1][1] == style:
            found[-1] = (found[-1][0] + text, style)
        elif text:
            found.append((text, style))
    return tuple(found)
