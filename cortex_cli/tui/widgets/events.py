"""Audit entries, newest at the bottom."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from typing_extensions import override

from cortex_cli.color import Tone
from cortex_cli.render.audit import entry_tone, facts_line
from cortex_cli.terminal import neutralize_line
from cortex_cli.tui.theme import theme_color
from cortex_cli.tui.widgets.lines import Lines, Spans
from cortex_common.schema.audit import AuditEntry

_MAX_ENTRIES = 2000
_COLORS = {Tone.GOOD: "success", Tone.WARN: "warning", Tone.BAD: "error"}


class EventLines(Lines):
    """The audit log; follows new entries until it is scrolled up."""

    FOCUS_ON_CLICK = False

    def __init__(self) -> None:
        super().__init__("events")
        self._entries: deque[AuditEntry] = deque(maxlen=_MAX_ENTRIES)
        self._following = True

    def add(self, entry: AuditEntry) -> None:
        """Add an entry; the next `show` draws it."""
        self._entries.append(entry)

    def show(self) -> None:
        """Draw the entries."""
        self.redraw(len(self._entries))
        self.on_resize()

    @override
    def on_resize(self) -> None:
        if self._following:
            self.scroll_to(y=self.max_scroll_y, animate=False)

    @override
    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._following = new_value >= self.max_scroll_y

    @override
    def spans(self, index: int) -> Spans:
        entry = self._entries[index]
        at = datetime.fromtimestamp(entry.at).astimezone().strftime("%H:%M:%S")
        tone = entry_tone(entry)
        color = theme_color(self.app, _COLORS[tone]) if tone is not None else ""
        return (
            (f"{at} ", "dim"),
            (f"{neutralize_line(entry.event):<16} ", color),
            (f"{neutralize_line(entry.actor):<11} ", "bold"),
            (facts_line(entry), ""),
        )
