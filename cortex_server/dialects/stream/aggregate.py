"""Aggregation of a streamed response into the unstreamed one that the client asked for.

Some engines keep computing an unstreamed response after the client has disconnected. They are always asked to stream,
and the stream is aggregated here: chat and text completions, with any number of choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_common.sse import SseEvent, SseParser
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import (
    AssistantMessage,
    FunctionCall,
    ToolCall,
    ToolCallDelta,
)
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.json_input import is_utf8
from cortex_server.dialects.lenient import UnreadableContent, decode_leniently
from cortex_server.dialects.stream.chunk_decoder import decode_lines, unreadable_chunk
from cortex_server.dialects.stream.text import SplitCharacterBuffer
from cortex_server.dialects.tool_calls import ToolCallIds, ToolCallTracker
from cortex_server.dialects.usage import Usage


class StreamAggregator:
    """Aggregates the bytes of an engine's stream into one response.

    Args:
        response_id: unique among responses; missing ids of tool calls are derived from it.
        model: the name that the client sent, for the response; None keeps the engine's.

    Attributes:
        events: number of chunks received.
        error: why the stream failed; bytes after it are ignored.
    """

    def __init__(self, *, response_id: str, model: str | None = None) -> None:
        self._parser = SseParser()
        self._response_id = response_id
        self._model = model
        self._choices: dict[int, _PartialChoice] = {}
        self._first: _Chunk | None = None
        self._last = _Chunk()
        self._usage: Raw | UnsetType = UNSET
        self._characters = SplitCharacterBuffer()
        self._done = False
        self.events = 0
        self.error: CortexError | None = None

    @property
    def usage(self) -> Usage | None:
        """The engine's usage, once received."""
        try:
            return None if self._usage is UNSET else _decode_usage(self._usage)
        except ValueError:
            return None

    def is_finished(self, choices: int) -> bool:
        """Return whether the stream has ended, or this many choices have a finish reason."""
        return (
            self._done
            or self.error is not None
            or sum(1 for c in self._choices.values() if c.finish_reason) >= choices
        )

    def feed(self, data: bytes) -> None:
        """Add more bytes of the stream, split at any point."""
        for event in self._parser.feed(data):
            self._handle_event(event)

    def end(self) -> bytes:
        """Return the response, once the engine has closed its stream.

        Raises:
            CortexError: the engine failed, or ended its stream before the response was complete.
        """
        for event in self._parser.close():
            self._handle_event(event)
        if self.error is None and not self._is_complete:
            self.error = UpstreamFailed(
                "The engine's stream ended before the response was complete"
            )
        if self.error is not None:
            raise self.error
        return msgspec.json.encode(self._build())

    @property
    def _is_complete(self) -> bool:
        return bool(self._choices) and all(c.finish_reason for c in self._choices.values())

    def _handle_event(self, event: SseEvent) -> None:
        if self._done or self.error is not None:
            return
        if event.data == b"[DONE]":
            self._done = True
        elif event.name == "error":
            self.error = error_from_event(event.data)
        elif event.name in {"", "message"}:
            try:
                for chunk in self._decode_event(event.data):
                    self._handle_chunk(chunk, event.data)
            except UnreadableContent as failed:
                self.error = unreadable_chunk(event.data, failed)
            except ValueError as failed:
                self.error = UpstreamFailed(
                    f"The engine sent a tool call that can't be read: {failed}"
                )

    def _decode_event(self, data: bytes) -> Sequence[_Chunk]:
        if not self._characters.pending and is_utf8(data):
            try:
                return (_decode_strictly(data),)
            except (ValueError, RecursionError):
                pass
        return decode_lines(data, self._decode_chunk)

    def _decode_chunk(self, data: bytes) -> _Chunk:
        data = self._characters.rejoin(data)
        try:
            return _decode_strictly(data)
        except (ValueError, RecursionError):
            return _decode_strictly(msgspec.json.encode(decode_leniently(data)))

    def _handle_chunk(self, chunk: _Chunk, data: bytes) -> None:
        if chunk.error is not UNSET and bytes(chunk.error) not in _NOTHING:
            self.error = error_from_event(data)
            return
        for choice in chunk.choices or ():
            self._choices.setdefault(max(0, choice.index or 0), _PartialChoice()).add(choice)
            self._keep_usage(choice.usage)
            if choice.finish_reason:
                self.error = self.error or finish_reasons.failure(choice.finish_reason)
        self.events += 1
        self._first = self._first or chunk
        self._last = chunk
        self._keep_usage(chunk.usage)

    def _keep_usage(self, usage: Raw | UnsetType) -> None:
        if usage is not UNSET and bytes(usage) not in _NOTHING:
            self._usage = usage

    def _build(self) -> _Completion:
        first = self._first
        assert first is not None  # checked by end()
        ids = ToolCallIds((), self._response_id, "call")
        model = first.model if self._model is None else Raw(msgspec.json.encode(self._model))
        is_text = any(choice.is_text for choice in self._choices.values())
        return _Completion(
            id=first.id,
            object="text_completion" if is_text else "chat.completion",
            created=first.created,
            model=model,
            choices=[choice.build(index, ids) for index, choice in sorted(self._choices.items())],
            usage=self._usage,
            system_fingerprint=first.system_fingerprint,
            service_tier=first.service_tier,
            timings=self._last.timings,
        )


class _ChunkChoice(Struct):
    index: int | None = None
    delta: AssistantMessage | None = None
    message: AssistantMessage | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET
    logprobs: dict[str, list[Raw] | None] | None = None
    usage: Raw | UnsetType = UNSET


class _Chunk(Struct):
    id: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    system_fingerprint: Raw | UnsetType = UNSET
    service_tier: Raw | UnsetType = UNSET
    timings: Raw | UnsetType = UNSET
    choices: list[_ChunkChoice] | None = None
    usage: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class _Message(Struct):
    content: str | None
    role: str = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class _Choice(Struct):
    index: int
    finish_reason: str | None
    logprobs: dict[str, list[Raw]] | None
    message: _Message | UnsetType = UNSET
    text: str | UnsetType = UNSET
    stop_reason: Raw | UnsetType = UNSET


class _Completion(Struct):
    id: Raw | UnsetType
    object: str
    created: Raw | UnsetType
    model: Raw | UnsetType
    choices: list[_Choice]
    usage: Raw | UnsetType
    system_fingerprint: Raw | UnsetType
    service_tier: Raw | UnsetType
    timings: Raw | UnsetType


_decode_strictly = msgspec.json.Decoder(_Chunk).decode
_decode_usage = msgspec.json.Decoder(Usage).decode
_NOTHING = {b"null", b"{}", b"false", b'""'}


@dataclass(slots=True)
class _PartialChoice:
    """A choice received so far."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    calls: ToolCallTracker = field(default_factory=ToolCallTracker)
    function_call: ToolCallTracker = field(default_factory=ToolCallTracker)
    logprobs: dict[str, list[Raw]] = field(default_factory=dict)
    is_text: bool = False
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET

    def add(self, choice: _ChunkChoice) -> None:
        """Add the same choice of another chunk.

        Raises:
            ValueError: the arguments of a tool call can't be read.
        """
        if choice.text is not None:
            self.is_text = True
            self.texts.append(choice.text)
        delta = choice.delta or choice.message
        if delta is not None:
            self._add_delta(delta)
        if choice.logprobs:
            for name, entries in choice.logprobs.items():
                self.logprobs.setdefault(name, []).extend(entries or ())
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.stop_reason is not UNSET:
            self.stop_reason = choice.stop_reason

    def _add_delta(self, delta: AssistantMessage) -> None:
        self.texts.append(delta.text or "")
        self.reasoning.append(delta.reasoning_text or "")
        self.refusals.append(delta.refusal or "")
        for call in delta.tool_calls or ():
            self.calls.add_delta(call)
        if delta.function_call is not None:
            self.function_call.add_delta(ToolCallDelta(0, function=delta.function_call))

    def build(self, index: int, ids: ToolCallIds) -> _Choice:
        """Return the choice of an unstreamed response."""
        logprobs = self.logprobs or None
        text = "".join(self.texts)
        if self.is_text:
            return _Choice(
                index, self.finish_reason, logprobs, text=text, stop_reason=self.stop_reason
            )
        message = self._build_message(text, ids)
        reason = finish_reasons.openai_word(self.finish_reason or "") or None
        if reason == "stop" and message.tool_calls:
            reason = "tool_calls"
        return _Choice(index, reason, logprobs, message=message, stop_reason=self.stop_reason)

    def _build_message(self, text: str, ids: ToolCallIds) -> _Message:
        calls = [
            ToolCall(ids.assign(call.engine_id), FunctionCall(call.name, call.arguments or "{}"))
            for call in self.calls.calls
        ]
        functions = [
            FunctionCall(call.name, call.arguments or "{}") for call in self.function_call.calls
        ]
        content = text or (None if calls or functions else "")
        message = _Message(content, refusal="".join(self.refusals) or None)
        message.reasoning_content = "".join(self.reasoning) or UNSET
        message.tool_calls = calls or UNSET
        message.function_call = functions[0] if functions else UNSET
        return message
