"""The part that every translated stream shares: reading the engine, and knowing when it is over."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cortex_common.errors import CortexError
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.stream.reader import ChatReader


class ClientStream(ABC):
    """Bytes of an engine's chat stream in, bytes of the client's stream out.

    A dialect says how its stream starts, goes on, ends and fails by appending to `_out`. It is
    also the sink of the reader.

    Attributes:
        started: the first event was handed out, so an error can no longer be an HTTP status.
    """

    def __init__(self, *, only_first_call: bool) -> None:
        self._reader = ChatReader(self, only_first_call=only_first_call)
        self._out = bytearray()
        self._over = False
        self.started = False

    @property
    def error(self) -> CortexError | None:
        """Why the stream failed. While not `started`, answer with it as an HTTP error instead."""
        return self._reader.error

    @property
    def complete(self) -> bool:
        """Whether the whole answer was handed out."""
        return self._over and self.error is None

    @property
    def lingering(self) -> bool:
        """The engine has said why it stopped, but not yet that this was all: usage may still come."""
        return not self._over and self._reader.finish_reason is not None

    @property
    def usage(self) -> Usage | None:
        """The engine's count, once it has come."""
        return self._reader.usage

    @property
    def malformed(self) -> int:
        """Events of the engine that could not be read and were skipped."""
        return self._reader.malformed

    def open(self) -> bytes:
        """The start of the stream, for when waiting is long and the answer's status is settled."""
        self._start()
        return self._taken()

    def ping(self) -> bytes:
        """Keeps the client's idle timer from running out; starts the stream if need be."""
        if self._over:
            return b""
        self._start()
        self._write_ping()
        return self._taken()

    def feed(self, data: bytes) -> bytes:
        """What the engine's next bytes, cut anywhere, come to."""
        if self._over:
            return b""
        self._reader.feed(data)
        return self._settled()

    def end(self) -> bytes:
        """The engine closed its stream, or dallies after its finish reason."""
        if self._over:
            return b""
        self._reader.end()
        return self._settled()

    def fail(self, error: CortexError) -> bytes:
        """The connection to the engine broke, or the gateway gives up."""
        if self._over:
            return b""
        self._reader.error = error
        return self._settled()

    @abstractmethod
    def reasoning(self, text: str) -> None:
        """See ChatSink."""

    @abstractmethod
    def text(self, text: str) -> None:
        """See ChatSink."""

    @abstractmethod
    def call_started(self, number: int, engine_id: str, name: str) -> None:
        """See CallSink."""

    @abstractmethod
    def call_arguments(self, text: str) -> None:
        """See CallSink."""

    @abstractmethod
    def _write_start(self) -> None:
        """Append the events that open a stream."""

    @abstractmethod
    def _write_ping(self) -> None:
        """Append what keeps a stream alive."""

    @abstractmethod
    def _write_end(self) -> None:
        """Append the events that end a whole answer."""

    @abstractmethod
    def _write_error(self, error: CortexError) -> None:
        """Append the events that end a broken one."""

    def _start(self) -> None:
        if not self.started:
            self.started = True
            self._write_start()

    def _settled(self) -> bytes:
        reader = self._reader
        if reader.began:
            self._start()
        if reader.error is not None:
            self._over = True
            self._write_error(reader.error)
        elif reader.complete:
            self._over = True
            self._write_end()
        return self._taken()

    def _taken(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out
