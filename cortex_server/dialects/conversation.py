"""Builder of chat messages in an order that chat templates accept.

Templates are stricter than the APIs: many allow a system message only at the start, some require user and assistant
messages to alternate, most can't render an image in a tool message, and a tool call must be followed by its results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cortex_server.dialects.chat import ImagePart, Message, Part, TextPart, ToolCall


class ToolOutput(NamedTuple):
    """The result of a tool call."""

    call_id: str
    text: str
    images: list[ImagePart]


class Conversation:
    """Chat messages under construction. Turns are added in the order in which the client sent them.

    Attributes:
        call_ids: ids of all tool calls in earlier turns.
    """

    def __init__(self) -> None:
        self.call_ids: set[str] = set()
        self._messages: list[Message] = []
        self._system_texts: list[str] = []
        self._user_parts: list[Part] = []
        self._unanswered: set[str] = set()
        self._deferred: list[str] = []

    def add_system(self, text: str) -> None:
        """Add instructions: a system message at the start, later a reminder in a user message.

        Moving later instructions to the start would change the beginning of the prompt, and so invalidate the
        engine's prefix cache each time. Between a tool call and its results they are deferred.
        """
        if not text:
            return
        if not self._messages and not self._user_parts:
            self._system_texts.append(text)
        elif self._unanswered:
            self._deferred.append(text)
        else:
            self.add_user([TextPart(f"<system-reminder>\n{text}\n</system-reminder>")])

    def add_user(self, parts: Iterable[Part]) -> None:
        """Add a user turn, merged with a preceding user turn so that roles alternate."""
        self._user_parts.extend(parts)

    def add_assistant(self, text: str, reasoning: str, calls: list[ToolCall]) -> None:
        """Add an assistant turn; pass an empty `reasoning` for engines that don't accept it."""
        self._flush_deferred()
        self._flush_user()
        message = Message("assistant", text)
        if reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        self._messages.append(message)
        self._unanswered = {call.id for call in calls}
        self.call_ids |= self._unanswered

    def add_tool_outputs(self, outputs: Iterable[ToolOutput]) -> None:
        """Add tool messages, followed by one user message with all their images."""
        images: list[Part] = []
        count = 0
        for output in outputs:
            count += 1
            self._flush_user()
            self._messages.append(Message("tool", output.text, tool_call_id=output.call_id))
            self._unanswered.discard(output.call_id)
            images += output.images
        self.add_user(images)
        if not count or not self._unanswered:
            self._flush_deferred()

    def finish(self) -> list[Message]:
        """Add deferred instructions and return all messages."""
        self._flush_deferred()
        self._flush_user()
        if self._system_texts:
            return [Message("system", "\n\n".join(self._system_texts)), *self._messages]
        return self._messages

    def _flush_user(self) -> None:
        if self._user_parts:
            self._messages.append(Message("user", _collapse(self._user_parts)))
            self._user_parts = []

    def _flush_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        self._unanswered = set()
        for text in deferred:
            self.add_system(text)


def _collapse(parts: list[Part]) -> str | list[Part]:
    """Return one string if all parts are text, because some templates accept no other content."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else parts
