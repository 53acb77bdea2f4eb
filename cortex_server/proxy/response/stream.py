"""Responses that the client gets as a stream."""

from __future__ import annotations

from collections import Counter

from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.split import completion_events
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.dialects.usage import Usage
from cortex_server.proxy.response.base import EngineResponse
from cortex_server.proxy.response.body import Buffer
from cortex_server.proxy.response.completion import check_completion


class PassthroughStream(EngineResponse):
    """A stream in OpenAI's dialect for a client of that dialect: clean bytes are forwarded, others repaired.

    Args:
        repair: Repairs the stream.
        choices: Number of choices that were asked for.
    """

    def __init__(self, repair: StreamRepair, choices: int = 1) -> None:
        self._repair = repair
        self._choices = choices

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
    def is_streamed(self) -> bool:
        return bool(self._repair.events)

    @property
    @override
    def repairs(self) -> Counter[str]:
        return self._repair.repairs

    @property
    @override
    def lingering(self) -> bool:
        repair = self._repair
        return repair.ended or len(repair.finish_reasons) >= self._choices

    @property
    @override
    def complete(self) -> bool:
        return self._repair.complete and self._repair.error is None

    @override
    def feed(self, data: bytes) -> bytes:
        return self._repair.feed(data)

    @override
    def end(self) -> bytes:
        return self._finish(self._repair.end())

    @override
    def fail(self, error: CortexError) -> bytes:
        return self._finish(self._repair.fail(error))

    def _finish(self, output: bytes) -> bytes:
        self.failure = self._repair.error
        return output


class TranslatedStream(EngineResponse):
    """A stream in another dialect.

    Args:
        stream: Writes it.
    """

    shares_stream = True

    def __init__(self, stream: StreamWriter) -> None:
        self._stream = stream
        self._events = 0

    @property
    @override
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    @override
    def lingering(self) -> bool:
        return self._stream.lingering or self._stream.complete or self._stream.error is not None

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
    def is_streamed(self) -> bool:
        return bool(self._events)

    @override
    def feed(self, data: bytes) -> bytes:
        # Comments are no events. No text contains a line feed, so that this counts no text either.
        self._events += data.startswith(b"data:") + data.count(b"\ndata:")
        output = self._stream.feed(data)
        return output if self._stream.started else b""

    @override
    def end(self) -> bytes:
        return self._finish(self._stream.end())

    @override
    def fail(self, error: CortexError) -> bytes:
        return self._finish(self._stream.fail(error))

    def _finish(self, output: bytes) -> bytes:
        self.failure = self._stream.error
        return output


class StreamedBody(EngineResponse):
    """A whole completion for a client that asked for a stream: it gets all events at once.

    Args:
        stream: Receives the completion as the events of a stream.
    """

    def __init__(self, stream: EngineResponse) -> None:
        self._stream = stream
        self._buffer = Buffer()

    @property
    @override
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    @override
    def output_tokens(self) -> int:
        return self._stream.output_tokens

    @property
    @override
    def repairs(self) -> Counter[str]:
        return self._stream.repairs

    def feed(self, data: bytes) -> bytes:
        """Keep the piece."""
        self._buffer.add(data)
        return b""

    @override
    def end(self) -> bytes:
        body = self._buffer.take()
        try:
            check_completion(body)
        except CortexError as failed:
            self.failure = failed
            return b""
        output = self._stream.feed(completion_events(body)) + self._stream.end()
        self.failure = self._stream.failure
        return output

    def fail(self, error: CortexError) -> None:
        """Return None: nothing has been sent yet."""
