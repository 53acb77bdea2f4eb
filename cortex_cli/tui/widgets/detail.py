"""Details of one model, next to the table."""

from __future__ import annotations

from rich.text import Text
from typing_extensions import override

from cortex_cli.tui.widgets.lines import Lines, Spans


class DetailPanel(Lines, can_focus=False):
    """A framed text that wraps to the width of the panel and scrolls."""

    def __init__(self) -> None:
        super().__init__("side")
        self._text = Text()
        self._lines: list[Spans] = []

    def show(self, title: str, text: Text) -> None:
        """Show a text."""
        self.border_title = Text(title).markup
        self._text = text
        self.on_resize()

    @override
    def on_resize(self) -> None:
        if width := self.scrollable_content_region.width:
            console = self.app.console
            self._lines = [
                tuple((s.text, str(s.style or "")) for s in line.render(console))
                for line in self._text.wrap(console, width)
            ]
            # At least one page, so that a shorter text needs no new layout.
            self.redraw(max(self.page, len(self._lines)))

    @override
    def spans(self, index: int) -> Spans:
        return self._lines[index] if index < len(self._lines) else ()
