"""How a response is displayed while it arrives: rendered on a terminal, unchanged in a pipe."""

from __future__ import annotations

import os
import sys
from typing import Protocol, Self

from typing_extensions import override

from cortex_cli.chat.blocks import complete_blocks
from cortex_cli.terminal import neutralize, neutralize_line


class Display(Protocol):
    """Displays one response; a context manager that leaves the cursor at the beginning of a line."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def wait(self, progress: str) -> None:
        """Show what the request waits for."""

    def add(self, text: str, thinking: str) -> None:
        """Show further text of the response and of the model's reasoning; either can be empty."""


class PlainDisplay(Display):
    """Writes the text to stdout as it arrives, and the reasoning to stderr."""

    def __init__(self) -> None:
        self._written = False

    @override
    def __enter__(self) -> Self:
        return self

    @override
    def __exit__(self, *_: object) -> None:
        if self._written:
            sys.stdout.write("\n")
            sys.stdout.flush()

    @override
    def wait(self, progress: str) -> None:
        pass

    @override
    def add(self, text: str, thinking: str) -> None:
        self._written = self._written or bool(text)
        for stream, added in ((sys.stderr, thinking), (sys.stdout, text)):
            if added:
                stream.write(neutralize(added) if stream.isatty() else added)
                stream.flush()


class TerminalDisplay(Display):
    """Shows a spinner until the response begins, then renders its Markdown block by block.

    Blocks that are complete scroll away above the live region, which contains only the block that is being written, so
    that responses longer than the screen stay readable.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(no_color="NO_COLOR" in os.environ, highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=12)
        self._text = ""
        self._thinking = ""

    @override
    def __enter__(self) -> Self:
        self._live.__enter__()
        self.wait("waiting")
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._end_thinking()
        self._live.update("")
        self._live.__exit__(None, None, None)
        self._print_markdown(self._text)

    @override
    def wait(self, progress: str) -> None:
        from rich.spinner import Spinner
        from rich.text import Text

        if not self._text and not self._thinking:
            self._live.update(Spinner("dots", Text(neutralize_line(progress), "dim")))

    @override
    def add(self, text: str, thinking: str) -> None:
        self._thinking += neutralize(thinking)
        if text:
            self._end_thinking()
            self._text += neutralize(text)
            end = complete_blocks(self._text)
            self._print_markdown(self._text[:end])
            self._text = self._text[end:]
        self._show_rest()

    def _show_rest(self) -> None:
        from rich.text import Text

        rest, style = (self._text, "") if self._text else (self._thinking, "dim italic")
        height = max(1, self._console.height - 2)
        self._live.update(Text("\n".join(rest.splitlines()[-height:]), style))

    def _end_thinking(self) -> None:
        from rich.text import Text

        if self._thinking.strip():
            self._console.print(Text(self._thinking.strip() + "\n", "dim italic"))
        self._thinking = ""

    def _print_markdown(self, text: str) -> None:
        from rich.markdown import Markdown
        from rich.segment import Segment, Segments

        if not text.strip():
            return
        # Some kinds of blocks are rendered with blank lines around them, others without.
        lines = self._console.render_lines(Markdown(text, hyperlinks=False), pad=False)
        blank = [not "".join(segment.text for segment in line).strip() for line in lines]
        first = blank.index(False) if False in blank else len(lines)
        last = len(lines) - blank[::-1].index(False) if False in blank else first
        segments = [segment for line in lines[first:last] for segment in (*line, Segment.line())]
        self._console.print(Segments([*segments, Segment.line()]), end="")


def display_for_stdout() -> Display:
    """Return the display for stdout."""
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalDisplay() if is_terminal else PlainDisplay()
