"""Responses that the client gets as one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from typing_extensions import override

from cortex_common.errors import CortexError, UpstreamFailed
from cortex_server.dialects.engine_errors import error_from_event, error_from_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.usage_scan import UsageScanner
from cortex_server.dialects.usage import Usage
from cortex_server.proxy.response.base import JSON_HEAD, NO_REPAIRS, EngineResponse
from cortex_server.proxy.response.completion import check_completion, output_size, usage_of

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an engine's body that are kept at most; the longest answers, with logprobs, have a tenth of it."""

_MAX_ERROR_BODY = 1024 * 1024

_BYTES_PER_TOKEN = 4


class PassthroughBody(EngineResponse):
    """A response other than a completion, forwarded as it arrives; usage is read at its end."""

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


class Buffer:
    """Collects the pieces of a body, up to a limit."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Keep a piece.

        Raises:
            UpstreamFailed: The body is too large.
        """
        self._size += len(data)
        if self._size > MAX_BODY:
            raise UpstreamFailed(f"the engine's answer is larger than {MAX_BODY >> 20} MiB")
        self._pieces.append(data)

    def take(self) -> bytes:
        """Return the whole body."""
        body, self._pieces = b"".join(self._pieces), []
        return body


Convert = Callable[[bytes], tuple[bytes, Counter[str]]]
"""Returns the client's body for an engine's, and the number of repairs by kind; raises CortexError if it can't."""


class BufferedResponse(EngineResponse):
    """A whole response that is converted in one piece once it is complete.

    Args:
        convert: Returns the client's body for the engine's, and the repairs.
        is_completion: Whether the engine's body is a chat or text completion.
    """

    head = JSON_HEAD

    def __init__(
        self,
        convert: Convert,
        *,
        is_completion: bool = True,
    ) -> None:
        self._convert = convert
        self._is_completion = is_completion
        self._repairs = NO_REPAIRS
        self._buffer = Buffer()
        self._usage: Usage | None = None
        self._output_tokens = 0

    @property
    @override
    def usage(self) -> Usage | None:
        return self._usage

    @property
    @override
    def repairs(self) -> Counter[str]:
        return self._repairs

    @property
    @override
    def output_tokens(self) -> int:
        return self._output_tokens

    def feed(self, data: bytes) -> bytes:
        """Keep the piece."""
        self._buffer.add(data)
        return b""

    @override
    def end(self) -> bytes:
        return self._converted(self._buffer.take())

    def fail(self, error: CortexError) -> None:
        """Return None: it is sent in one piece, or not at all."""

    def _converted(self, body: bytes) -> bytes:
        try:
            if self._is_completion:
                completion = check_completion(body)
                self._usage = usage_of(completion)
                if self._usage is None:
                    self._output_tokens = -(-output_size(completion) // _BYTES_PER_TOKEN)
            body, self._repairs = self._convert(body)
        except CortexError as failed:
            self.failure = failed
            return b""
        return body


class AggregatedResponse(BufferedResponse):
    """A stream that is put together to the whole response that the client asked for.

    Args:
        aggregator: Puts it together.
        choices: Number of choices that were asked for.
        convert: See `BufferedResponse`.
    """

    def __init__(
        self,
        aggregator: StreamAggregator,
        choices: int,
        convert: Convert,
    ) -> None:
        super().__init__(convert)
        self._aggregator = aggregator
        self._choices = choices
        self._size = 0

    @property
    @override
    def usage(self) -> Usage | None:
        return self._usage or self._aggregator.usage

    @property
    @override
    def events(self) -> int:
        return self._aggregator.events

    @property
    @override
    def output_tokens(self) -> int:
        return self._aggregator.events

    @property
    @override
    def lingering(self) -> bool:
        return self._aggregator.is_finished(self._choices)

    @override
    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > MAX_BODY:
            raise UpstreamFailed(f"the engine's stream is larger than {MAX_BODY >> 20} MiB")
        self._aggregator.feed(data)
        return b""

    @override
    def end(self) -> bytes:
        try:
            body = self._aggregator.end()
        except CortexError as failed:
            self.failure = failed
            return b""
        return self._converted(body)


class ErrorBody(EngineResponse):
    """The body of an error: of a response of status 400 or more, or in one of status 200.

    Args:
        status: Status of the engine.
        retry_after: Seconds that the engine asks to wait.

    Attributes:
        body: The beginning of the body.
    """

    head = JSON_HEAD

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        self.body = b""
        self._status = status
        self._retry_after = retry_after

    def feed(self, data: bytes) -> bytes:
        """Keep the beginning of the body."""
        if len(self.body) < _MAX_ERROR_BODY:
            self.body += data[: _MAX_ERROR_BODY - len(self.body)]
        return b""

    @override
    def end(self) -> bytes:
        if self._status < 400:
            self.failure = error_from_event(self.body)
        else:
            self.failure = error_from_response(self._status, self.body, self._retry_after)
        return b""

    def fail(self, error: CortexError) -> None:
        """Return None: nothing of it is ever sent."""
