"""A scrollable column of lines that are built when visible and redrawn only when they change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from typing_extensions import override

Span = tuple[str, str]
"""Text and its style in Rich's notation; "" for the style of the background."""

Spans = tuple[Span, ...]


class Lines(ScrollView):
    """A scrollable column of lines.

    Subclasses set the number of lines with `redraw` and build each line in `spans`. Textual's own table redraws
    everything when one cell changes, which dominated the cost of the screen on a busy fleet.
    """

    DEFAULT_CSS = "Lines { overflow-x: hidden; }"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"lines--background"}

    HEADER_LINES: ClassVar[int] = 0
    """Number of lines at the top that do not scroll."""

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self._count = 0
        self._drawn: dict[int, Spans] = {}

    def spans(self, index: int) -> Spans:
        """Return a line from left to right; a negative index means a header line."""
        raise NotImplementedError

    def background_class(self, index: int) -> str:  # noqa: ARG002 - for subclasses
        """Return the component class of a line's background style."""
        return "lines--background"

    @property
    def visible_lines(self) -> range:
        """Indices of the lines that are visible now, without header lines."""
        first = round(self.scroll_y)
        return range(first, max(first, min(self._count, first + self.page)))

    @property
    def page(self) -> int:
        """Number of lines that are visible at once."""
        return max(0, self.scrollable_content_region.height - self.HEADER_LINES)

    def action_move(self, lines: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=lines, animate=False)

    def on_resize(self) -> None:
        """Rebuild all lines, because they can depend on the width."""
        self.redraw_all()

    def redraw(self, count: int) -> None:
        """Redraw the visible lines that have changed.

        Args:
            count: the current number of lines.
        """
        if count != self._count:
            self._count = count
            self.virtual_size = Size(0, self.HEADER_LINES + count)
            self.refresh()
        drawn = {index: self.spans(index) for index in self.visible_lines}
        for index, spans in drawn.items():
            if spans != self._drawn.get(index):
                self.refresh_line(self.HEADER_LINES + index)
        self._drawn = drawn

    def redraw_line(self, index: int) -> None:
        """Redraw a line unconditionally."""
        self._drawn.pop(index, None)
        self.refresh_line(self.HEADER_LINES + index)

    def redraw_all(self) -> None:
        """Redraw every line, after a change of the size or the theme."""
        self._drawn.clear()
        self.refresh()

    @override
    def render_line(self, y: int) -> Strip:
        index = y - self.HEADER_LINES
        if index >= 0:
            index += round(self.scroll_y)
        width = self.scrollable_content_region.width
        if index >= self._count:
            return Strip.blank(width, self.get_component_rich_style("lines--background"))
        spans = self._drawn.get(index)
        if spans is None:
            spans = self._drawn[index] = self.spans(index)
        background = self.get_component_rich_style(self.background_class(index))
        segments = [Segment(text, background + _style(style)) for text, style in spans]
        return Strip(segments).adjust_cell_length(width, background)


@lru_cache(256)
def _style(definition: str) -> Style:
    return Style.parse(definition)


def merge(spans: Sequence[Span]) -> Spans:
    """Merge adjacent spans of the same style, so that there is less to draw."""
    merged: list[Span] = []
    for text, style in spans:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        elif text:
            merged.append((text, style))
    return tuple(merged)
