"""A conversation with a model, and the slash commands that change it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cortex_cli.inference import Message
from cortex_common.errors import BadRequest, nearest_names

SLASH_COMMANDS = {
    "/help": "list the commands",
    "/model [NAME]": "show the model, or continue with another",
    "/system [TEXT]": "show the system prompt, or set it",
    "/clear": "forget the messages, but not the system prompt",
    "/save FILE": "write the conversation to a file as Markdown",
    "/exit": "end the conversation, like ctrl-d",
}
"""Commands by usage, with a summary."""

_NAMES = tuple(usage.split()[0] for usage in SLASH_COMMANDS)
_ALIASES = {"/bye": "/exit", "/quit": "/exit", "/?": "/help"}


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A line that is a command.

    Attributes:
        name: one of `SLASH_COMMANDS`, with the slash.
        argument: the text after it; empty if there is none.
    """

    name: str
    argument: str


def parse_line(line: str) -> SlashCommand | str:
    """Return the command in a line, or the line itself if it is a message.

    A message that begins with a slash is written with two: `//etc is a directory`.

    Raises:
        BadRequest: there is no such command.
    """
    if not line.startswith("/") or "\n" in line:
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, argument = line.partition(" ")
    name = _ALIASES.get(name, name)
    if name not in _NAMES:
        close = nearest_names(name, _NAMES)
        hint = f"did you mean {close[0]}?" if close else "/help lists the commands"
        raise BadRequest(f"unknown command {name!r}", hints=(hint,))
    return SlashCommand(name, argument.strip())


@dataclass(slots=True)
class Conversation:
    """The messages between a user and a model.

    Attributes:
        model: name or alias of the model.
        system: system prompt; empty for none.
        messages: messages of the user and the model, in order.
    """

    model: str
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def request(self, question: str) -> list[Message]:
        """Return the messages to send for the next question."""
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, *self.messages, Message(role="user", content=question)]

    def add(self, question: str, answer: str) -> None:
        """Add a question and its answer, which can be incomplete; nothing is added if there is none."""
        if answer:
            self.messages.append(Message(role="user", content=question))
            self.messages.append(Message(role="assistant", content=answer))

    def to_markdown(self) -> str:
        """Return the conversation as a Markdown document."""
        parts = [f"# {self.model}"]
        if self.system:
            parts.append(f"## system\n\n{self.system}")
        parts += [f"## {message.role}\n\n{message.content}" for message in self.messages]
        return "\n\n".join(parts) + "\n"
