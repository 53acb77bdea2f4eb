"""The prompt of a conversation: line editing, several lines, and a history that is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


class Prompt(Protocol):
    """Reads the lines of a user."""

    async def read(self) -> str | None:
        """Return the next message, or None at the end of the conversation.

        Raises:
            KeyboardInterrupt: the user pressed ctrl-c.
        """


class PlainPrompt(Prompt):
    """Reads lines from stdin without editing, for terminals that can't move the cursor."""

    @override
    async def read(self) -> str | None:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        return line.strip() if line else None


class EditingPrompt(Prompt):
    """Edits messages with Emacs or Vi keys, as readline's settings say, and keeps a history.

    Args:
        history: file of the history; None to keep none.
    """

    def __init__(self, history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if history is None else FileHistory(str(history)),
            key_bindings=_key_bindings(),
            multiline=True,
            prompt_continuation="  ",
            enable_open_in_editor=True,
        )

    @override
    async def read(self) -> str | None:
        try:
            return (await self._session.prompt_async("> ")).strip()
        except EOFError:
            return None


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history_path(environ: Mapping[str, str]) -> Path:
    """Return the path of the history (XDG base directory specification)."""
    base = environ.get("XDG_STATE_HOME")
    state = Path(base) if base else Path(environ.get("HOME", "~")).expanduser() / ".local/state"
    return state / "cortex" / "chat-history"


def prompt_for_terminal(environ: Mapping[str, str]) -> Prompt:
    """Return the prompt for the terminal of this process; the history is readable by its user only."""
    if environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return PlainPrompt()
    path: Path | None = history_path(environ)
    assert path is not None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        path = None  # A read-only home directory is no reason not to chat.
    return EditingPrompt(path)
