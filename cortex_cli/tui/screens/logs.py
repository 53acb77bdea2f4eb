"""The log screen: follows the log of an engine or a daemon."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, RichLog
from typing_extensions import override

from cortex_cli.terminal import neutralize, neutralize_line
from cortex_cli.tui.theme import theme_color
from cortex_common.errors import CortexError

_MAX_LINES = 5000
_LEVEL = re.compile(r"\b(ERROR|WARN)")
_COLORS = {"ERROR": "error", "WARN": "warning"}


def strip_control(line: str) -> str:
    """Remove the engine's colors and other control characters from a line."""
    return neutralize_line(neutralize(line))


class LogScreen(ModalScreen[None]):
    """A log that is followed.

    Args:
        name: gateway, node or model that the log belongs to.
        chunks: text of the log as it arrives.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,L", "leave", "close"),
        Binding("s", "follow", "follow or hold"),
        Binding("w", "wrap", "wrap lines"),
        Binding("slash", "filter", "filter"),
        Binding("m", "mark", "draw a separator"),
        Binding("0,G,end", "tail", "to the end"),
        Binding("1,g,home", "head", "to the start"),
        Binding("c", "copy", "copy"),
        Binding("j,down", "scroll(1)", "down", show=False),
        Binding("k,up", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, name: str, chunks: AsyncGenerator[str]) -> None:
        super().__init__()
        self._source_name = name
        self._chunks = chunks
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._words = ""
        self._state = ""
        self._log = RichLog(id="log", max_lines=_MAX_LINES, wrap=False, auto_scroll=True)
        self._input = Input(id="log-line", compact=True, placeholder="filter: words")

    @override
    def compose(self) -> ComposeResult:
        with Vertical(classes="log"):
            yield self._log
            yield self._input

    def on_mount(self) -> None:
        """Start reading."""
        self._log.focus()
        self._update_title()
        self._read()

    @work(exclusive=True, group="log", exit_on_error=False)
    async def _read(self) -> None:
        rest = ""
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    *lines, rest = (rest + chunk).split("\n")
                    for line in lines:
                        self._add(strip_control(line))
            self._state = "ended"
        except CortexError as failed:
            self._state = neutralize_line(failed.message)
        self._update_title()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._words in line.lower():
            self._write(line)

    def _write(self, line: str) -> None:
        level = _LEVEL.search(line)
        color = theme_color(self.app, _COLORS[level[1]]) if level else ""
        self._log.write(Text(line, style=color))

    def _rewrite(self) -> None:
        self._log.clear()
        for line in self._lines:
            if self._words in line.lower():
                self._write(line)
        self._update_title()

    def _update_title(self) -> None:
        frame = self.query_one(".log", Vertical)
        words = f" /{self._words}" if self._words else ""
        held = "" if self._log.auto_scroll else " held"
        state = f" ({self._state})" if self._state else ""
        frame.border_title = Text(f"log of {self._source_name}{words}{held}{state}").markup
        frame.border_subtitle = (
            "s follow  w wrap  / filter  m mark  0 end  1 start  c copy  esc closes"
        )

    def action_follow(self) -> None:
        """Follow new lines, or hold the position."""
        self._log.auto_scroll = not self._log.auto_scroll
        self._update_title()

    def action_wrap(self) -> None:
        """Wrap or truncate long lines."""
        self._log.wrap = not self._log.wrap
        self._rewrite()

    def action_mark(self) -> None:
        """Draw a separator between old and new lines."""
        self._add("─" * 40)

    def action_tail(self) -> None:
        """Scroll to the end and follow new lines."""
        self._log.auto_scroll = True
        self._log.scroll_end(animate=False)
        self._update_title()

    def action_head(self) -> None:
        """Scroll to the first line."""
        self._log.auto_scroll = False
        self._log.scroll_home(animate=False)
        self._update_title()

    def action_copy(self) -> None:
        """Copy the visible lines to the terminal's clipboard."""
        visible = [line for line in self._lines if self._words in line.lower()]
        self.app.copy_to_clipboard("\n".join(visible))
        self.app.notify(f"{len(visible)} lines copied", markup=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines, for j and k."""
        self._log.auto_scroll = False
        self._log.scroll_relative(y=lines, animate=False)
        self._update_title()

    def action_filter(self) -> None:
        """Open the filter."""
        self._input.value = self._words
        self._input.add_class("visible")
        self._input.focus()

    @on(Input.Changed, "#log-line")
    def _filter_changed(self, event: Input.Changed) -> None:
        self._words = event.value.lower()
        self._rewrite()

    @on(Input.Submitted, "#log-line")
    def _filter_entered(self) -> None:
        self._input.remove_class("visible")
        self._log.focus()

    def action_leave(self) -> None:
        """Close the filter if it is open, otherwise the log."""
        if self._input.has_class("visible"):
            self._words = ""
            self._filter_entered()
            self._rewrite()
        else:
            self.dismiss()
