"""Responses that the client gets as one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
from typing_extensions import override

from cortex_common.errors import CortexError, envelope_bytes
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.usage_scan import UsageScanner
from cortex_server.proxy.response.base import JSON_HEAD, NO_REPAIRS, EngineResponse, ErrorResponse

_MAX_BUFFERED = 1 << 20


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
