"""What was decided, the newest at the bottom."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from cortex_cli.color import Tone
from cortex_cli.render.audit import entry_tone, facts_line
from cortex_cli.render.table import printable
from cortex_cli.tui.theme import ink
from cortex_cli.tui.widgets.lines import Lines, Pieces
from cortex_common.schema.audit import AuditEntry

_KEPT = 2000
_TONES = {Tone.GOOD: "success", Tone.WARN: "warning", Tone.BAD: "error"}


class EventLines(Lines):
    """The entries of the trail; those that come are followed until somebody scrolls up."""

    FOCUS_ON_CLICK = False

    def __init__(self) -> None:
        super().__init__("events")
        self._entries: deque[AuditEntry] = deque(maxlen=_KEPT)
        self._follows = True

    def note(self, entry: AuditEntry) -> None:
        """Add an entry, to be seen with the next drawing."""
        self._entries.append(entry)

    def show(self) -> None:
        """Draw those that came."""
        self.redraw(len(self._entries))
        self.on_resize()

    def on_resize(self) -> None:
        """Keep the newest on the screen."""
        if self._follows:
            self.scroll_to(y=self.max_scroll_y, animate=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """See `ScrollView`; whoever scrolls to the end follows again."""
        super().watch_scroll_y(old_value, new_value)
        self._follows = new_value >= self.max_scroll_y

    def pieces(self, index: int) -> Pieces:
        """See `Lines.pieces`."""
        entry = self._entries[index]
        at = datetime.fromtimestamp(entry.at).astimezone().strftime("%H:%M:%S")
        found = entry_tone(entry)
        tone = ink(self.app, _TONES[found]) if found is not None else ""
        return (
            (f"{at} ", "dim"),
            (f"{printable(entry.event):<16} ", tone),
            (f"{printable(entry.actor):<11} ", "bold"),
            (facts_line(entry), ""),
        )
