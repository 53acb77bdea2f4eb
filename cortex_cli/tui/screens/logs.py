"""What an engine or a daemon writes, as it writes it."""

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

from cortex_cli.render.table import printable
from cortex_cli.tui.theme import ink
from cortex_common.errors import CortexError

_KEPT = 5000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_MARK = re.compile(r"\b(ERROR|WARN)")
_TONES = {"ERROR": "error", "WARN": "warning"}


def plain(line: str) -> str:
    """A line without the engine's colours and other control characters."""
    return printable(_ESCAPES.sub("", line))


class LogScreen(ModalScreen[None]):
    """One log.

    Args:
        name: whose.
        pieces: of its log, as they come.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,L", "leave", "close"),
        Binding("s", "follow", "follow or stand still"),
        Binding("w", "wrap", "wrap lines"),
        Binding("slash", "filter", "filter"),
        Binding("m", "mark", "draw a line"),
        Binding("0,G,end", "tail", "to the end"),
        Binding("1,g,home", "head", "to the beginning"),
        Binding("c", "copy", "copy"),
        Binding("j,down", "scroll(1)", "down", show=False),
        Binding("k,up", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, name: str, pieces: AsyncGenerator[str]) -> None:
        super().__init__()
        self._whose = name
        self._pieces = pieces
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._words = ""
        self._state = ""
        self._log = RichLog(id="log", max_lines=_KEPT, wrap=False, auto_scroll=True)
        self._line = Input(id="log-line", compact=True, placeholder="filter: words")

    def compose(self) -> ComposeResult:
        """The log in a frame, the filter below it."""
        with Vertical(classes="log"):
            yield self._log
            yield self._line

    def on_mount(self) -> None:
        """Begin to read."""
        self._log.focus()
        self._name_frame()
        self._read()

    @work(exclusive=True, group="log", exit_on_error=False)
    async def _read(self) -> None:
        rest = ""
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    *lines, rest = (rest + piece).split("\n")
                    for line in lines:
                        self._add(plain(line))
            self._state = "ended"
        except CortexError as failed:
            self._state = printable(failed.message)
        self._name_frame()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._words in line.lower():
            self._write(line)

    def _write(self, line: str) -> None:
        found = _MARK.search(line)
        tone = ink(self.app, _TONES[found[1]]) if found else ""
        self._log.write(Text(line, style=tone))

    def _write_again(self) -> None:
        self._log.clear()
        for line in self._lines:
            if self._words in line.lower():
                self._write(line)
        self._name_frame()

    def _name_frame(self) -> None:
        frame = self.query_one(".log", Vertical)
        words = f" /{self._words}" if self._words else ""
        still = "" if self._log.auto_scroll else " standing still"
        state = f" ({self._state})" if self._state else ""
        frame.border_title = Text(f"log of {self._whose}{words}{still}{state}").markup
        frame.border_subtitle = (
            "s follow  w wrap  / filter  m mark  0 end  1 begin  c copy  esc closes"
        )

    def action_follow(self) -> None:
        """Go on with what comes, or stand still."""
        self._log.auto_scroll = not self._log.auto_scroll
        self._name_frame()

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them."""
        self._log.wrap = not self._log.wrap
        self._write_again()

    def action_mark(self) -> None:
        """Draw a line, to see what comes after it."""
        self._add("─" * 40)

    def action_tail(self) -> None:
        """To the end, and on with it."""
        self._log.auto_scroll = True
        self._log.scroll_end(animate=False)
        self._name_frame()

    def action_head(self) -> None:
        """To the first line that is kept."""
        self._log.auto_scroll = False
        self._log.scroll_home(animate=False)
        self._name_frame()

    def action_copy(self) -> None:
        """All that is shown, to the terminal's clipboard."""
        shown = [line for line in self._lines if self._words in line.lower()]
        self.app.copy_to_clipboard("\n".join(shown))
        self.app.notify(f"{len(shown)} lines copied", markup=False)

    def action_scroll(self, lines: int) -> None:
        """Scroll with j and k too."""
        self._log.auto_scroll = False
        self._log.scroll_relative(y=lines, animate=False)
        self._name_frame()

    def action_filter(self) -> None:
        """Type words that lines must hold."""
        self._line.value = self._words
        self._line.add_class("shown")
        self._line.focus()

    @on(Input.Changed, "#log-line")
    def _typed(self, event: Input.Changed) -> None:
        self._words = event.value.lower()
        self._write_again()

    @on(Input.Submitted, "#log-line")
    def _entered(self) -> None:
        self._line.remove_class("shown")
        self._log.focus()

    def action_leave(self) -> None:
        """Close the filter, else the log."""
        if self._line.has_class("shown"):
            self._words = ""
            self._entered()
            self._write_again()
        else:
            self.dismiss()
