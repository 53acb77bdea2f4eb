"""Streams of engines, for clients that asked for a stream."""

from __future__ import annotations

from collections import Counter

from typing_extensions import override

from cortex_common.errors import CortexError, UpstreamFailed, envelope_bytes
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.openai_errors import encode_engine_error
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.proxy.response.base import NO_REPAIRS, EngineResponse, ErrorResponse


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
