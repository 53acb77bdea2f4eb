"""Responses of engines, converted to what the client gets.

An `EngineResponse` receives each piece of the engine's body and returns the bytes for the client: the same ones,
repaired where necessary, or translated to another dialect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import msgspec
from typing_extensions import override

from cortex_common.errors import CortexError, UpstreamFailed, envelope_bytes
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.openai_errors import encode_engine_error
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.usage_scan import UsageScanner
from cortex_server.dialects.stream.writer import StreamWriter

_MAX_BUFFERED = 1 << 20

JSON_HEAD = b"content-type: application/json\r\n"
STREAM_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\n"
)

ErrorResponse = Callable[[CortexError], tuple[int, bytes]]
"""Returns an error as HTTP status and JSON body of a dialect."""


class EngineResponse(ABC):
    """Converts the engine's body piece by piece.

    Attributes:
        forwards_head: Whether the engine's head is forwarded to the client immediately.
        head: Header lines for the client when the body starts before the engine's response is complete.
        status: HTTP status for the client, once `end` or `fail` has been called. When a head has been sent already, the
            status that it should have had.
        error: Code of what went wrong inside the response.
    """

    forwards_head: ClassVar[bool] = False
    head: ClassVar[bytes] = STREAM_HEAD

    status = 200
    error: str | None = None

    @property
    def usage(self) -> Usage | None:
        """Token counts of the engine, once it has reported them."""
        return None

    @property
    def events(self) -> int:
        """Number of stream events so far, about one per token; 0 for a response that arrives whole."""
        return 0

    @property
    def repairs(self) -> Counter[str]:
        """Number of repairs by kind."""
        return NO_REPAIRS

    @property
    def lingering(self) -> bool:
        """Whether the finish reason has arrived but not the end of the stream: usage may still follow."""
        return False

    @property
    def complete(self) -> bool:
        """Whether the client has got the end, although the engine may not have closed its stream yet."""
        return False

    def token_counts(self) -> tuple[int, int, int]:
        """Return prompt tokens, completion tokens, and prompt tokens from the engine's cache.

        When the engine reports no usage, each event of the stream counts as one completion token.
        """
        usage = self.usage
        if usage is None:
            return 0, self.events, 0
        return usage.bounded_counts

    @property
    def repair(self) -> StreamRepair | None:
        """The repair of a stream whose clean events are forwarded as they are; None for any other response."""
        return None

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Return what the client gets for a piece of the engine's body."""

    @abstractmethod
    def end(self) -> bytes:
        """Return the rest for the client once the engine's response is complete."""

    @abstractmethod
    def fail(self, error: CortexError) -> bytes | None:
        """Return how a broken-off response ends; None when only a closed connection can say so."""


NO_REPAIRS: Counter[str] = Counter()


class PassthroughStream(EngineResponse):
    """A stream in OpenAI's dialect for a client of that dialect: clean bytes are forwarded, others repaired.

    An error before the first chunk becomes a plain error response: mistral.rs reports a prompt that is too long that
    way.

    Args:
        repair: Repairs the stream.
        opened: Whether the client's stream has begun with keep-alive comments.
    """

    def __init__(self, repair: StreamRepair, *, opened: bool = False) -> None:
        self._repair = repair
        self._opened = opened

    @property
    @override
    def repair(self) -> StreamRepair:
        return self._repair

    @property
    @override
    def usage(self) -> Usage | None:
        return self._repair.usage

    @property
    @override
    def events(self) -> int:
        return self._repair.events

    @property
    @override
    def repairs(self) -> Counter[str]:
        return self._repair.repairs

    @property
    @override
    def complete(self) -> bool:
        return self._repair.complete and self._repair.error is None

    @override
    def feed(self, data: bytes) -> bytes:
        output = self._repair.feed(data)
        if self._repair.events or self._opened:
            return output
        if self._repair.error is not None:
            return b""
        self._opened = bool(output)  # with a comment of the engine's
        return output

    @override
    def end(self) -> bytes:
        return self._finish(self._repair.end())

    @override
    def fail(self, error: CortexError) -> bytes:
        return self._finish(self._repair.fail(error))

    def _finish(self, output: bytes) -> bytes:
        error = self._repair.error
        if error is None:
            return output
        self.error = error.code
        if self._repair.events:
            return output
        self.status = error.status
        if self._opened:
            return output
        return (
            envelope_bytes(error)
            if isinstance(error, UpstreamFailed)
            else encode_engine_error(error)
        )


class PassthroughBody(EngineResponse):
    """A response other than a chat, forwarded as it arrives; usage is read at its end."""

    forwards_head = True

    def __init__(self) -> None:
        self._ends = UsageScanner()
        self._usage: Usage | None = None

    @property
    @override
    def usage(self) -> Usage | None:
        return self._usage

    @override
    def feed(self, data: bytes) -> bytes:
        self._ends.feed(data)
        return data

    @override
    def end(self) -> bytes:
        self._usage = self._ends.usage()
        return b""

    def fail(self, error: CortexError) -> None:
        """Return None: half a document can't be repaired, so the connection is closed."""
        self.error = error.code


class RepairedBody(EngineResponse):
    """A whole chat response for a client of OpenAI's dialect; one that is very large is forwarded as it is.

    Args:
        repair_body: Returns the repaired body and the repairs.
    """

    head = JSON_HEAD

    def __init__(self, repair_body: Callable[[bytes], tuple[bytes, Counter[str]]]) -> None:
        self._repair_body = repair_body
        self._buffered: list[bytes] | None = []
        self._ends = UsageScanner()
        self._size = 0
        self._usage: Usage | None = None
        self._repairs = NO_REPAIRS

    @property
    @override
    def usage(self) -> Usage | None:
        return self._usage

    @property
    @override
    def repairs(self) -> Counter[str]:
        return self._repairs

    def feed(self, data: bytes) -> bytes:
        """Buffer the piece, up to a limit."""
        if self._buffered is None:
            self._ends.feed(data)
            return data
        self._buffered.append(data)
        self._size += len(data)
        if self._size <= _MAX_BUFFERED:
            return b""
        body, self._buffered = b"".join(self._buffered), None
        self._ends.feed(body)
        return body

    @override
    def end(self) -> bytes:
        if self._buffered is None:
            self._usage = self._ends.usage()
            return b""
        body, self._repairs = self._repair_body(b"".join(self._buffered))
        self._usage = read_usage(body)
        return body

    def fail(self, error: CortexError) -> bytes | None:
        """Return a plain error as long as nothing has been forwarded."""
        self.error = error.code
        if self._buffered is None:
            return None
        self.status = error.status
        return envelope_bytes(error)


class EngineError(EngineResponse):
    """A response of status 400 or more, in the client's dialect.

    Args:
        status: Status of the engine.
        translate: Returns status and body for the client.
        error_response: Returns one of cortex's errors in the client's dialect.
    """

    def __init__(
        self,
        status: int,
        translate: Callable[[int, bytes], tuple[int, bytes]],
        error_response: ErrorResponse,
    ) -> None:
        self.status = status
        self.error = f"engine_{status}"
        self._translate = translate
        self._error_response = error_response
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        """Keep the beginning of the body."""
        self._body = (self._body + data)[:_MAX_BUFFERED]
        return b""

    @override
    def end(self) -> bytes:
        self.status, body = self._translate(self.status, self._body)
        return body

    @override
    def fail(self, error: CortexError) -> bytes:
        self.error = error.code
        self.status, body = self._error_response(error)
        return body


class LateError(EngineResponse):
    """A response that is not a stream although the client's stream has begun: reported as an error event.

    Args:
        status: Status of the engine.
        error_event: Returns an error as an event of the client's stream.
    """

    def __init__(self, status: int, error_event: Callable[[CortexError], bytes]) -> None:
        self.error = f"engine_{status}"
        self._status = status
        self._error_event = error_event
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        """Keep the beginning of the body."""
        self._body = (self._body + data)[:_MAX_BUFFERED]
        return b""

    @override
    def end(self) -> bytes:
        error = error_from_response(max(400, self._status), self._body)
        self.status = error.status
        return self._error_event(error)

    @override
    def fail(self, error: CortexError) -> bytes:
        self.error = error.code
        return self._error_event(error)


class _Counted(msgspec.Struct):
    usage: Usage | None = None


_decode_counted = msgspec.json.Decoder(_Counted).decode


def read_usage(body: bytes) -> Usage | None:
    """Return the usage of a whole response; None when it has none, or the body is not JSON."""
    try:
        return _decode_counted(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class BufferedResponse(EngineResponse):
    """A whole response that is collected and translated in one piece.

    Args:
        translate: Returns the client's body for the engine's; a CortexError that it raises is reported instead.
        error_response: Returns an error in the client's dialect.
    """

    def __init__(self, translate: Callable[[bytes], bytes], error_response: ErrorResponse) -> None:
        self._translate = translate
        self._error_response = error_response
        self._pieces: list[bytes] = []
        self._usage: Usage | None = None

    @property
    @override
    def usage(self) -> Usage | None:
        return self._usage

    def feed(self, data: bytes) -> bytes:
        """Keep the piece."""
        self._pieces.append(data)
        return b""

    @override
    def end(self) -> bytes:
        return self._translated(b"".join(self._pieces))

    def fail(self, error: CortexError) -> bytes:
        """Return a plain error: nothing has been sent yet."""
        return self._failed(error)

    def _translated(self, body: bytes) -> bytes:
        self._usage = read_usage(body)
        try:
            return self._translate(body)
        except CortexError as failed:
            return self._failed(failed)

    def _failed(self, error: CortexError) -> bytes:
        self.error = error.code
        self.status, body = self._error_response(error)
        return body


class AggregatedResponse(BufferedResponse):
    """A stream that was requested only so that the engine can be cancelled, put together to a whole response."""

    def __init__(
        self,
        assembler: StreamAggregator,
        translate: Callable[[bytes], bytes],
        error_response: ErrorResponse,
    ) -> None:
        super().__init__(translate, error_response)
        self._assembler = assembler

    @override
    def feed(self, data: bytes) -> bytes:
        self._assembler.feed(data)
        return b""

    @override
    def end(self) -> bytes:
        try:
            return self._translated(self._assembler.end())
        except CortexError as failed:
            return self._failed(failed)


class TranslatedStream(EngineResponse):
    """A stream in another dialect; an error before its first event becomes a plain error response."""

    def __init__(self, stream: StreamWriter, error_response: ErrorResponse) -> None:
        self._stream = stream
        self._error_response = error_response
        self._events = 0

    @property
    @override
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    @override
    def lingering(self) -> bool:
        return self._stream.lingering

    @property
    @override
    def complete(self) -> bool:
        return self._stream.complete

    @property
    @override
    def events(self) -> int:
        return self._events

    @property
    @override
    def repairs(self) -> Counter[str]:
        return (
            Counter(malformed_chunk=self._stream.malformed)
            if self._stream.malformed
            else NO_REPAIRS
        )

    @override
    def feed(self, data: bytes) -> bytes:
        self._events += data.count(b"\n\n")
        output = self._stream.feed(data)
        return output if self._stream.started else b""

    @override
    def end(self) -> bytes:
        return self._finish(self._stream.end())

    @override
    def fail(self, error: CortexError) -> bytes:
        return self._finish(self._stream.fail(error))

    def _finish(self, output: bytes) -> bytes:
        error = self._stream.error
        if error is None:
            return output
        self.error = error.code
        if self._stream.started:
            return output
        self.status, body = self._error_response(error)
        return body
