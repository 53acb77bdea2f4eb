"""Base class of the stream writers: reads the engine's stream and tracks whether the response has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cortex_common.errors import CortexError
from cortex_server.dialects.stream.reader import ChatStreamReader
from cortex_server.dialects.usage import Usage


class StreamWriter(ABC):
    """Converts the bytes of an engine's chat stream to the bytes of the client's stream.

    A subclass writes the events of its dialect by appending to `_out`. It is also the handler of the reader.

    Args:
        only_first_call: ignore all tool calls but the first.

    Attributes:
        started: the first event was written, so an error can no longer be an HTTP status.
    """

    def __init__(self, *, only_first_call: bool) -> None:
        self._reader = ChatStreamReader(self, only_first_call=only_first_call)
        self._out = bytearray()
        self._ended = False
        self.started = False

    @property
    def error(self) -> CortexError | None:
        """Why the stream failed. While not `started`, answer with it as an HTTP error instead."""
        return self._reader.error

    @property
    def complete(self) -> bool:
        """Whether the complete response was written."""
        return self._ended and self.error is None

    @property
    def lingering(self) -> bool:
        """Whether the engine sent a finish reason but has not ended its stream: usage can still come."""
        return not self._ended and self._reader.finish_reason is not None

    @property
    def usage(self) -> Usage | None:
        """The engine's usage, once received."""
        return self._reader.usage

    def open(self) -> bytes:
        """Return the start of the stream, for a long wait whose HTTP status is settled."""
        self._start()
        return self._take_output()

    def ping(self) -> bytes:
        """Return an event that resets the client's idle timer; starts the stream if necessary."""
        if self._ended:
            return b""
        self._start()
        self._write_ping()
        return self._take_output()

    def feed(self, data: bytes) -> bytes:
        """Return the client's bytes for more bytes of the engine, split at any point."""
        if self._ended:
            return b""
        self._reader.feed(data)
        return self._advance()

    def end(self) -> bytes:
        """Return the end of the stream: the engine closed its own, or lingers after its finish reason."""
        if self._ended:
            return b""
        self._reader.end()
        return self._advance()

    def fail(self, error: CortexError) -> bytes:
        """Return the end of the stream for an error of the gateway, such as a lost connection."""
        if self._ended:
            return b""
        self._reader.error = error
        return self._advance()

    @abstractmethod
    def on_reasoning(self, text: str) -> None:
        """Write more reasoning."""

    @abstractmethod
    def on_text(self, text: str) -> None:
        """Write more visible text."""

    @abstractmethod
    def on_tool_call(self, position: int, engine_id: str, name: str) -> None:
        """Write the start of a tool call."""

    @abstractmethod
    def on_arguments(self, text: str) -> None:
        """Write more arguments of the current tool call."""

    @abstractmethod
    def _write_start(self) -> None:
        """Append the events that start a stream."""

    @abstractmethod
    def _write_ping(self) -> None:
        """Append an event that keeps the stream alive."""

    @abstractmethod
    def _write_end(self) -> None:
        """Append the events that end a complete response."""

    @abstractmethod
    def _write_error(self, error: CortexError) -> None:
        """Append the events that end a failed response."""

    def _start(self) -> None:
        if not self.started:
            self.started = True
            self._write_start()

    def _advance(self) -> bytes:
        reader = self._reader
        if reader.started:
            self._start()
        if reader.error is not None:
            self._ended = True
            self._write_error(reader.error)
        elif reader.complete:
            self._ended = True
            self._write_end()
        return self._take_output()

    def _take_output(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out
