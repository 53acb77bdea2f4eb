"""Assembles a streamed answer into the whole one that the client asked for.

Some engines go on computing an unstreamed answer after the client has gone. They are always asked to
stream, and what they stream is put together here: chat and text completions, several choices.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_http.sse import SseEvent, SseParser
from cortex_server.dialects.chat import CalledFunction, Said, ToolCall, Usage
from cortex_server.dialects.engine_errors import from_stream
from cortex_server.dialects.stream.text import HalfCharacters
from cortex_server.dialects.tool_calls import CallIds, CallTracker


class _ChunkChoice(Struct):
    index: int | None = None
    delta: Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET
    logprobs: dict[str, list[Raw] | None] | None = None


class _Chunk(Struct):
    id: Raw | UnsetType = UNSET
    created: Raw | UnsetType = UNSET
    model: Raw | UnsetType = UNSET
    system_fingerprint: Raw | UnsetType = UNSET
    service_tier: Raw | UnsetType = UNSET
    timings: Raw | UnsetType = UNSET
    choices: list[_ChunkChoice] | None = None
    usage: Raw = Raw()
    error: Raw = Raw()


class _Message(Struct):
    content: str | None
    role: str = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class _Choice(Struct):
    index: int
    finish_reason: str | None
    logprobs: dict[str, list[Raw]] | None
    message: _Message | UnsetType = UNSET
    text: str | UnsetType = UNSET
    stop_reason: Raw | UnsetType = UNSET


class _Answer(Struct):
    id: Raw | UnsetType
    object: str
    created: Raw | UnsetType
    model: Raw | UnsetType
    choices: list[_Choice]
    usage: Raw | UnsetType
    system_fingerprint: Raw | UnsetType
    service_tier: Raw | UnsetType
    timings: Raw | UnsetType


_chunks = msgspec.json.Decoder(_Chunk)
_usages = msgspec.json.Decoder(Usage)


@dataclass(slots=True)
class _Growing:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    calls: CallTracker = field(default_factory=CallTracker)
    logprobs: dict[str, list[Raw]] = field(default_factory=dict)
    is_text: bool = False
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET

    def add(self, choice: _ChunkChoice) -> None:
        """Take a chunk's part of this choice.

        Raises:
            ValueError: the arguments of a call are no text.
        """
        if choice.text is not None:
            self.is_text = True
            self.texts.append(choice.text)
        if choice.delta is not None:
            self._said(choice.delta)
        for name, found in (choice.logprobs or {}).items():
            self.logprobs.setdefault(name, []).extend(found or ())
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.stop_reason is not UNSET:
            self.stop_reason = choice.stop_reason

    def _said(self, said: Said) -> None:
        self.texts.append(said.text or "")
        self.thoughts.append(said.thought or "")
        self.refusals.append(said.refusal or "")
        for piece in said.tool_calls or ():
            self.calls.place_piece(piece)

    def whole(self, index: int, ids: CallIds) -> _Choice:
        """The choice as it stands in a whole answer."""
        logprobs = self.logprobs or None
        text = "".join(self.texts)
        if self.is_text:
            return _Choice(
                index, self.finish_reason, logprobs, text=text, stop_reason=self.stop_reason
            )
        calls = [
            ToolCall(ids.take(call.engine_id), CalledFunction(call.name, call.arguments or "{}"))
            for call in self.calls.calls
        ]
        message = _Message(text or (None if calls else ""), refusal="".join(self.refusals) or None)
        message.reasoning_content = "".join(self.thoughts) or UNSET
        message.tool_calls = calls or UNSET
        after_calls = bool(calls) and self.finish_reason == "stop"
        reason = "tool_calls" if after_calls else self.finish_reason
        return _Choice(index, reason, logprobs, message=message, stop_reason=self.stop_reason)


class Assembler:
    """Bytes of an engine's stream in, one answer out.

    Args:
        answer_id: unique among answers; ids of calls that are missing are derived from it.
        model: the name that the client sent, for the answer; None keeps the engine's.

    Attributes:
        events: chunks that have come.
        error: why the stream failed; whatever comes after it is ignored.
    """

    def __init__(self, *, answer_id: str, model: str | None = None) -> None:
        self._parser = SseParser()
        self._answer_id = answer_id
        self._model = model
        self._choices: dict[int, _Growing] = {}
        self._first: _Chunk | None = None
        self._last = _Chunk()
        self._usage: Raw | UnsetType = UNSET
        self._halves = HalfCharacters()
        self._done = False
        self.events = 0
        self.error: CortexError | None = None

    @property
    def usage(self) -> Usage | None:
        """The engine's count, once it has come."""
        try:
            return None if self._usage is UNSET else _usages.decode(self._usage)
        except ValueError:
            return None

    def feed(self, data: bytes) -> None:
        """Take the engine's next bytes, cut anywhere."""
        for event in self._parser.feed(data):
            self._event(event)

    def end(self) -> bytes:
        """The whole answer, once the engine has closed its stream.

        Raises:
            CortexError: the engine failed, or ended its stream before the answer was whole.
        """
        for event in self._parser.close():
            self._event(event)
        finished = self._done or any(c.finish_reason for c in self._choices.values())
        if self.error is None and not (finished and self._first and self._choices):
            self.error = UpstreamFailed(
                "The engine's stream ended early, before the answer was whole"
            )
        if self.error is not None:
            raise self.error
        return msgspec.json.encode(self._answer())

    def _event(self, event: SseEvent) -> None:
        if self._done or self.error is not None:
            return
        if event.data == b"[DONE]":
            self._done = True
        elif event.name == "error":
            self.error = from_stream(event.data)
        elif event.name in {"", "message"}:
            self._chunk(event.data)

    def _chunk(self, data: bytes) -> None:
        try:
            chunk = _chunks.decode(self._halves.mend(data))
            if bytes(chunk.error) not in {b"", b"null"}:
                self.error = from_stream(data)
                return
            for choice in chunk.choices or ():
                self._choices.setdefault(choice.index or 0, _Growing()).add(choice)
        except (ValueError, RecursionError):
            self.error = UpstreamFailed("The engine sent a chunk that is no JSON")
            return
        self.events += 1
        self._first = self._first or chunk
        self._last = chunk
        if bytes(chunk.usage) not in {b"", b"null"}:
            self._usage = chunk.usage

    def _answer(self) -> _Answer:
        first = self._first
        assert first is not None  # end() has made sure
        ids = CallIds((), self._answer_id, "call")
        model = first.model if self._model is None else Raw(msgspec.json.encode(self._model))
        is_text = any(choice.is_text for choice in self._choices.values())
        return _Answer(
            id=first.id,
            object="text_completion" if is_text else "chat.completion",
            created=first.created,
            model=model,
            choices=[choice.whole(index, ids) for index, choice in sorted(self._choices.items())],
            usage=self._usage,
            system_fingerprint=first.system_fingerprint,
            service_tier=first.service_tier,
            timings=self._last.timings,
        )
