"""The input line at the bottom, for the filter and for commands."""

from __future__ import annotations

from textual import on
from textual.message import Message
from textual.widgets import Input

from cortex_cli.tui.commands import Command, parse
from cortex_common.errors import BadRequest


class InputLine(Input):
    """Hidden until opened; posts what is typed as messages."""

    class FilterChanged(Message):
        """The words of the filter, posted at each change."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    class CommandEntered(Message):
        """A valid command."""

        def __init__(self, command: Command) -> None:
            super().__init__()
            self.command = command

    class CommandRejected(Message):
        """An unknown or incomplete command."""

        def __init__(self, error: BadRequest) -> None:
            super().__init__()
            self.error = error

    class Closed(Message):
        """The line was closed."""

    def __init__(self) -> None:
        super().__init__(id="input-line", compact=True)
        self._is_filter = True

    @property
    def is_open(self) -> bool:
        """Whether the line is open."""
        return self.has_class("visible")

    def open_filter(self, words: str) -> None:
        """Open the line with the current filter."""
        self._open("filter: words, !not", words, is_filter=True)

    def open_command(self) -> None:
        """Open the line for a command."""
        placeholder = "load MODEL [--node N | --gpu N/I], unload, drain NODE, logs NODE, filter, sort, theme ..."
        self._open(placeholder, "", is_filter=False)

    def _open(self, placeholder: str, value: str, *, is_filter: bool) -> None:
        self._is_filter = is_filter
        self.placeholder = placeholder
        self.value = value
        self.add_class("visible")
        self.focus()

    def close(self) -> None:
        """Hide the line."""
        self.remove_class("visible")
        self.post_message(self.Closed())

    @on(Input.Changed)
    def _value_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self._is_filter and self.is_open:
            self.post_message(self.FilterChanged(event.value))

    @on(Input.Submitted)
    def _value_entered(self, event: Input.Submitted) -> None:
        event.stop()
        self.close()
        if self._is_filter:
            return
        try:
            self.post_message(self.CommandEntered(parse(event.value)))
        except BadRequest as error:
            self.post_message(self.CommandRejected(error))
