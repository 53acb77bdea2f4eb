"""Builds the messages of a chat request in an order that chat templates accept.

Templates are stricter than the APIs: many take a system message only at the start, some demand that
user and assistant alternate, most can't render an image in a tool's turn, and a call must be
followed by its results.
"""

from __future__ import annotations

from collections.abc import Iterable

from cortex_server.dialects.chat import ImagePart, Message, Part, TextPart, ToolCall


class Conversation:
    """The messages so far. Turns are added in the order in which the client sent them.

    Attributes:
        messages: what has been built; complete after `finish`.
        call_ids: ids of all calls of earlier turns.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.call_ids: set[str] = set()
        self._unanswered: set[str] = set()
        self._late: list[str] = []

    def system(self, text: str) -> None:
        """Instructions: at the start a system message, later a reminder inside a user message.

        Moving late ones to the start would change the prompt's beginning, and with it lose the
        engine's prefix cache, each time one is added. Between a call and its results they wait.
        """
        if not text:
            return
        if not self.messages or (len(self.messages) == 1 and self.messages[0].role == "system"):
            self._lead(text)
        elif self._unanswered:
            self._late.append(text)
        else:
            self.user([TextPart(f"<system-reminder>\n{text}\n</system-reminder>")])

    def user(self, parts: Iterable[Part]) -> None:
        """A user turn, merged with the user turn before it so that the roles alternate."""
        found = list(parts)
        if not found:
            return
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user":
            found = [*_parts(last), *found]
            self.messages.pop()
        self.messages.append(Message("user", _collapsed(found)))

    def assistant(self, text: str, reasoning: str, calls: list[ToolCall]) -> None:
        """An assistant turn; `reasoning` is empty for engines that don't take it."""
        self._flush_late()
        message = Message("assistant", text)
        if reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = calls
        self.messages.append(message)
        self._unanswered = {call.id for call in calls}
        self.call_ids |= self._unanswered

    def results(self, results: Iterable[tuple[str, str, list[ImagePart]]]) -> None:
        """What tools answered: (call id, text, images); the images follow in one user message."""
        images: list[Part] = []
        answered = list(results)
        for call_id, text, found in answered:
            self.messages.append(Message("tool", text, tool_call_id=call_id))
            self._unanswered.discard(call_id)
            images += found
        self.user(images)
        if not answered or not self._unanswered:
            self._flush_late()

    def finish(self) -> list[Message]:
        """All messages, with the reminders that still wait."""
        self._flush_late()
        return self.messages

    def _lead(self, text: str) -> None:
        if self.messages:
            self.messages[0].content = f"{self.messages[0].content}\n\n{text}"
        else:
            self.messages.append(Message("system", text))

    def _flush_late(self) -> None:
        late, self._late = self._late, []
        self._unanswered = set()
        for text in late:
            self.system(text)


def _parts(message: Message) -> list[Part]:
    content = message.content
    return [TextPart(content)] if isinstance(content, str) else list(content)


def _collapsed(parts: list[Part]) -> str | list[Part]:
    """One string when all parts are text: some templates know no other content."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else parts
