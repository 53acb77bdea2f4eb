"""Reads an engine's chat stream and tells it in order: reasoning, text, calls, each in one piece at a time.

The dialects that have items or blocks (Anthropic's Messages, OpenAI's Responses) are written from
what this tells; everything that engines do differently is settled here.
"""

from __future__ import annotations

from typing import Protocol

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_http.sse import SseEvent, SseParser
from cortex_server.dialects.chat import Answer, Choice, Said, Usage, read_answer
from cortex_server.dialects.engine_errors import from_stream
from cortex_server.dialects.stream.text import HalfCharacters
from cortex_server.dialects.tool_calls import CallSequence, CallSink


class ChatSink(CallSink, Protocol):
    """Where an answer is told. Texts are never empty."""

    def reasoning(self, text: str) -> None:
        """The reasoning goes on."""
        ...

    def text(self, text: str) -> None:
        """The visible answer goes on."""
        ...


class ChatReader:
    """Takes the bytes of one choice's stream, tells a sink, and keeps what is known at the end.

    Attributes:
        began: a chunk has come, so there is an answer.
        complete: the answer is whole; what still comes is ignored.
        finish_reason: the engine's word for why it stopped.
        stop_sequence: the stop string that was met, where the engine tells.
        refused: the model refused.
        usage: the last usage that came.
        error: what the engine said, or left unsaid, when it failed.
        malformed: events that were no JSON and were skipped.
    """

    def __init__(self, sink: ChatSink, *, only_first_call: bool = False) -> None:
        self._sink = sink
        self._parser = SseParser()
        self._calls = CallSequence(sink, only_first=only_first_call)
        self._halves = HalfCharacters()
        self._held: list[tuple[bool, str]] = []
        self._after_call = False
        self.began = False
        self.complete = False
        self.finish_reason: str | None = None
        self.stop_sequence: str | None = None
        self.refused = False
        self.usage: Usage | None = None
        self.error: CortexError | None = None
        self.malformed = 0

    @property
    def over(self) -> bool:
        """Whether nothing that comes can change the answer."""
        return self.complete or self.error is not None

    @property
    def called(self) -> bool:
        """Whether the answer has calls."""
        return self._calls.began

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        for event in self._parser.feed(data):
            if self.over:
                return
            self._event(event)

    def end(self) -> None:
        """The engine closed the stream; without a reason to stop that is an error."""
        for event in self._parser.close():
            if not self.over:
                self._event(event)
        if self.over:
            return
        if self.finish_reason is None:
            self.error = UpstreamFailed(
                "The engine's stream ended early, before the answer was whole"
            )
        else:
            self._finish()

    def _event(self, event: SseEvent) -> None:
        name, data = event
        if data == b"[DONE]":
            if self.began:
                self._finish()
            else:
                self.error = UpstreamFailed("The engine ended its stream without an answer")
            return
        if name == "error":
            self.error = from_stream(data)
            return
        if name not in {"", "message"}:
            return  # progress and the like, which some engines weave in
        answer = read_answer(data) or read_answer(self._halves.mend(data))
        if answer is None:
            self.malformed += 1
        elif (error := bytes(answer.error)) and error != b"null":
            self.error = from_stream(data)
        else:
            self._chunk(answer)

    def _chunk(self, answer: Answer) -> None:
        if answer.choices is None and answer.usage is None:
            return
        self.began = True
        for choice in answer.choices or ():
            if not choice.index:
                self._choice(choice)
        if answer.usage is not None and answer.usage.prompt_tokens is not None:
            self.usage = answer.usage
            if self.finish_reason is not None:
                self._finish()

    def _choice(self, choice: Choice) -> None:
        said = choice.delta or choice.message
        if said is not None:
            self._said(said)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        self.stop_sequence = choice.stop_sequence or self.stop_sequence

    def _said(self, said: Said) -> None:
        if thought := said.thought:
            self._prose(thought, reasoning=True)
        if text := said.text:
            self._prose(text, reasoning=False)
        if said.refusal:
            self.refused = True
            self._prose(said.refusal, reasoning=False)
        for piece in said.tool_calls or ():
            try:
                self._calls.piece(piece)
            except ValueError:
                self.malformed += 1
            self._after_call = self._after_call or self._calls.began

    def _prose(self, text: str, *, reasoning: bool) -> None:
        if self._after_call and text.isspace():
            return  # templates put line feeds between calls
        if self._held or not self._calls.settle():
            self._held.append((reasoning, text))
            return
        self._after_call = False
        (self._sink.reasoning if reasoning else self._sink.text)(text)

    def _finish(self) -> None:
        self._calls.end()
        for reasoning, text in self._held:
            (self._sink.reasoning if reasoning else self._sink.text)(text)
        self._held.clear()
        self.complete = True
