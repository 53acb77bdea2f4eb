"""What is known of one model, beside the table."""

from __future__ import annotations

from rich.text import Text

from cortex_cli.tui.widgets.lines import Lines, Pieces


class DetailPanel(Lines, can_focus=False):
    """A text in a frame; what has no room is scrolled to."""

    def __init__(self) -> None:
        super().__init__("side")
        self._text = Text()
        self._lines: list[Pieces] = []

    def show(self, title: str, text: Text) -> None:
        """Draw it."""
        self.border_title = Text(title).markup
        self._text = text
        self.on_resize()

    def on_resize(self) -> None:
        """Wrap the text for the room that there is."""
        if width := self.scrollable_content_region.width:
            console = self.app.console
            self._lines = [
                tuple((s.text, str(s.style or "")) for s in line.render(console))
                for line in self._text.wrap(console, width)
            ]
            # At least the page, as a text that is shorter than the last one needs no other layout.
            self.redraw(max(self.page, len(self._lines)))

    def pieces(self, index: int) -> Pieces:
        """See `Lines.pieces`."""
        return self._lines[index] if index < len(self._lines) else ()
