"""The line at the bottom, where a filter or a command is typed."""

from __future__ import annotations

from textual import on
from textual.message import Message
from textual.widgets import Input

from cortex_cli.tui.commands import Command, parse
from cortex_common.errors import BadRequest


class Line(Input):
    """Hidden until it is opened; what is typed into it comes out as messages."""

    class Filtered(Message):
        """The words of the filter, as they are typed."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class Commanded(Message):
        """A command, understood."""

        def __init__(self, command: Command) -> None:
            super().__init__()
            self.command = command

    class Misunderstood(Message):
        """A command that there is not."""

        def __init__(self, error: BadRequest) -> None:
            super().__init__()
            self.error = error

    class Closed(Message):
        """Nothing is typed any more."""

    def __init__(self) -> None:
        super().__init__(id="line", compact=True)
        self._is_filter = True

    @property
    def is_open(self) -> bool:
        """Whether somebody types."""
        return self.has_class("shown")

    def open_filter(self, words: str) -> None:
        """Have the filter typed, beginning with what it is."""
        self._open("filter: words, !not", words, is_filter=True)

    def open_command(self) -> None:
        """Have a command typed."""
        told = "load MODEL [--node N | --gpu N/I], unload, drain NODE, logs NODE, filter, sort, theme ..."
        self._open(told, "", is_filter=False)

    def _open(self, placeholder: str, value: str, *, is_filter: bool) -> None:
        self._is_filter = is_filter
        self.placeholder = placeholder
        self.value = value
        self.add_class("shown")
        self.focus()

    def close(self) -> None:
        """Hide it."""
        self.remove_class("shown")
        self.post_message(self.Closed())

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self._is_filter and self.is_open:
            self.post_message(self.Filtered(event.value))

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self.close()
        if self._is_filter:
            return
        try:
            self.post_message(self.Commanded(parse(event.value)))
        except BadRequest as failed:
            self.post_message(self.Misunderstood(failed))
