"""Reader of an engine's chat stream, which emits reasoning, text and tool calls in order and without gaps.

The stream writers of the other dialects (Anthropic Messages, OpenAI Responses) are handlers of this reader; all
differences between engines are resolved here.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import UNSET

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_common.sse import SseEvent, SseParser
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    ToolCallDelta,
)
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.lenient import UnreadableContent
from cortex_server.dialects.stream.chunk_decoder import ChunkDecoder, unreadable_chunk
from cortex_server.dialects.tool_calls import ToolCallHandler, ToolCallSequencer
from cortex_server.dialects.usage import Usage


class ChatHandler(ToolCallHandler, Protocol):
    """Receives the content of a response in order. Texts are never empty."""

    def on_reasoning(self, text: str) -> None:
        """Handle more reasoning."""
        ...

    def on_text(self, text: str) -> None:
        """Handle more visible text."""
        ...


class ChatStreamReader:
    """Parses the bytes of a stream with one choice, and emits its content to a handler.

    Args:
        handler: receives the content.
        only_first_call: ignore all tool calls but the first.

    Attributes:
        started: a chunk was received, so there is a response.
        complete: the response is complete; further bytes are ignored.
        finish_reason: the engine's finish reason.
        stop_sequence: the stop string that was matched, if the engine reports it.
        refused: the model refused.
        usage: the last usage that the engine sent.
        error: the engine's error, or that the stream ended early or can't be read.
    """

    def __init__(self, handler: ChatHandler, *, only_first_call: bool = False) -> None:
        self._handler = handler
        self._parser = SseParser()
        self._calls = ToolCallSequencer(handler, only_first=only_first_call)
        self._decoder = ChunkDecoder()
        self._held_back: list[tuple[bool, str]] = []
        self._after_call = False
        self._index: int | None = None
        self.started = False
        self.complete = False
        self.finish_reason: str | None = None
        self.stop_sequence: str | None = None
        self.refused = False
        self.usage: Usage | None = None
        self.error: CortexError | None = None

    @property
    def ended(self) -> bool:
        """Whether further bytes can't change the response."""
        return self.complete or self.error is not None

    @property
    def has_tool_calls(self) -> bool:
        """Whether the response has tool calls."""
        return self._calls.has_calls

    def feed(self, data: bytes) -> None:
        """Parse more bytes, split at any point."""
        for event in self._parser.feed(data):
            if self.ended:
                return
            self._handle_event(event)

    def end(self) -> None:
        """Handle the end of the stream; without a finish reason it is an error."""
        for event in self._parser.close():
            if not self.ended:
                self._handle_event(event)
        if self.ended:
            return
        if self.finish_reason is None:
            self.error = UpstreamFailed(
                "The engine's stream ended before the response was complete"
            )
        else:
            self._finish()

    def _handle_event(self, event: SseEvent) -> None:
        name, data = event.name, event.data
        if data == b"[DONE]":
            self._handle_done()
        elif name == "error":
            self.error = error_from_event(data)
        elif name in {"", "message"}:  # others are extensions of the engine, such as progress
            try:
                chunks = self._decoder.decode(data)
            except UnreadableContent as failed:
                self.error = unreadable_chunk(data, failed)
                return
            for chunk in chunks:
                if not self.ended:
                    self._handle_chunk(chunk, data)

    def _handle_done(self) -> None:
        if self.finish_reason is not None:
            self._finish()
        elif self.started:
            self.error = UpstreamFailed("The engine ended its stream without a finish reason")
        else:
            self.error = UpstreamFailed("The engine ended its stream without a response")

    def _handle_chunk(self, chunk: ChatCompletion, data: bytes) -> None:
        usage = chunk.usage
        if chunk.error is not UNSET and chunk.is_error:
            self.error = error_from_event(data)
            return
        if chunk.choices is not None:
            self.started = True
            for choice in chunk.choices:
                if self._is_ours(choice.index):
                    self._handle_choice(choice)
                    usage = usage or choice.usage
        if usage is not None and usage.is_reported:
            self.started = True
            self.usage = usage
            if self.finish_reason is not None and self.error is None:
                self._finish()

    def _is_ours(self, index: int | None) -> bool:
        """Return whether a choice is the one of the first chunk; some engines number it otherwise than 0."""
        if self._index is None:
            self._index = index
        return index is None or index < 0 or index == self._index

    def _handle_choice(self, choice: Choice) -> None:
        message = choice.delta or choice.message
        if message is not None:
            self._handle_message(message)
        if choice.text:
            self._emit_text(choice.text, is_reasoning=False)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
            self.error = self.error or finish_reasons.failure(choice.finish_reason)
        if choice.stop_reason or choice.stopping_word:
            self.stop_sequence = choice.stop_sequence or self.stop_sequence

    def _handle_message(self, message: AssistantMessage) -> None:
        if reasoning := message.reasoning_text:
            self._emit_text(reasoning, is_reasoning=True)
        if text := message.text:
            self._emit_text(text, is_reasoning=False)
        if message.refusal:
            self.refused = True
            self._emit_text(message.refusal, is_reasoning=False)
        if message.tool_calls or message.function_call:
            for delta in message.calls:
                self._handle_call(delta)

    def _handle_call(self, delta: ToolCallDelta) -> None:
        try:
            self._calls.add(delta)
        except ValueError as failed:
            self.error = UpstreamFailed(f"The engine sent a tool call that can't be read: {failed}")
        self._after_call = self._after_call or self._calls.has_calls

    def _emit_text(self, text: str, *, is_reasoning: bool) -> None:
        if self._after_call and text.isspace():
            return  # chat templates put line feeds between calls
        if self._held_back or not self._calls.close_current():
            self._held_back.append((is_reasoning, text))
            return
        self._after_call = False
        self._call_handler(text, is_reasoning=is_reasoning)

    def _call_handler(self, text: str, *, is_reasoning: bool) -> None:
        if is_reasoning:
            self._handler.on_reasoning(text)
        else:
            self._handler.on_text(text)

    def _finish(self) -> None:
        self._calls.finish()
        for is_reasoning, text in self._held_back:
            self._call_handler(text, is_reasoning=is_reasoning)
        self._held_back.clear()
        self.complete = True
