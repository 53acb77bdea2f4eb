"""What happens to the bytes of an answer between the engine and the client.

An `EngineResponse` receives each piece and returns the bytes for the client. These pass bytes on, repaired where
they must be; those of `retold` say them in other words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import msgspec

from cortex_common.errors import CortexError, UpstreamFailed, envelope_bytes
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.engine_errors import error_from_response
from cortex_server.dialects.openai_errors import encode_engine_error
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.stream.usage_scan import UsageScanner
from cortex_server.dialects.stream.writer import StreamWriter

_WATCHED = 1 << 20

JSON_HEAD = b"content-type: application/json\r\n"
STREAM_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\n"
)

Refusal = Callable[[CortexError], tuple[int, bytes]]
"""Says an error in a dialect: HTTP status and JSON body."""


class EngineResponse(ABC):
    """See the module.

    Attributes:
        prompt: the head of the engine's answer is the client's too, and can go at once.
        head: lines of the client's, where the body starts before the answer is whole.
        status: HTTP status for the client, once `end` or `broken` has been called; of a head that is out already, what
            it should have been.
        error: code of what went wrong inside the answer.
    """

    prompt: ClassVar[bool] = False
    head: ClassVar[bytes] = STREAM_HEAD

    status = 200
    error: str | None = None

    @property
    def usage(self) -> Usage | None:
        """What the engine counted, once it has told."""
        return None

    @property
    def events(self) -> int:
        """Pieces of a stream that have come, about one a token; 0 for a whole answer."""
        return 0

    @property
    def repairs(self) -> Counter[str]:
        """What was mended, by kind."""
        return NO_REPAIRS

    @property
    def lingering(self) -> bool:
        """The engine has said why it stopped, but not yet that this was all: usage may still come."""
        return False

    @property
    def complete(self) -> bool:
        """The client has been handed the end, though the engine may not have closed its stream yet."""
        return False

    def counted(self) -> tuple[int, int, int]:
        """Prompt tokens, completion tokens, and those of the prompt that came from the engine's cache.

        Where the engine has told none, a completion token is counted for each piece of the stream.
        """
        usage = self.usage
        if usage is None:
            return 0, self.events, 0
        return usage.bounded_counts

    @property
    def repair(self) -> StreamRepair | None:
        """What a stream passes through whose clean events are the client's as they come."""
        return None

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """What the client gets for a piece from the engine."""

    @abstractmethod
    def end(self) -> bytes:
        """The engine's answer is whole: what is still owed to the client."""

    @abstractmethod
    def broken(self, error: CortexError) -> bytes | None:
        """The engine broke off: how the client is told; None when only a cut connection can tell."""


NO_REPAIRS: Counter[str] = Counter()


class PassthroughStream(EngineResponse):
    """A stream in OpenAI's dialect for a client of that dialect: clean bytes pass, what is broken is mended.

    Until its first chunk is out an error is still a plain one: mistral.rs tells an over-long prompt that way.

    Args:
        repair: mends.
        opened: the client's stream has begun, with comments of ours.
    """

    def __init__(self, repair: StreamRepair, *, opened: bool = False) -> None:
        self._repair = repair
        self._opened = opened

    @property
    def repair(self) -> StreamRepair:
        """See `EngineResponse`."""
        return self._repair

    @property
    def usage(self) -> Usage | None:
        """See `EngineResponse`."""
        return self._repair.usage

    @property
    def events(self) -> int:
        """See `EngineResponse`."""
        return self._repair.events

    @property
    def repairs(self) -> Counter[str]:
        """See `EngineResponse`."""
        return self._repair.repairs

    @property
    def complete(self) -> bool:
        """See `EngineResponse`."""
        return self._repair.complete and self._repair.error is None

    def feed(self, data: bytes) -> bytes:
        """See `EngineResponse`."""
        owed = self._repair.feed(data)
        if self._repair.events or self._opened:
            return owed
        if self._repair.error is not None:
            return b""
        self._opened = bool(owed)  # by a comment of the engine's
        return owed

    def end(self) -> bytes:
        """See `EngineResponse`."""
        return self._over(self._repair.end())

    def broken(self, error: CortexError) -> bytes:
        """See `EngineResponse`."""
        return self._over(self._repair.fail(error))

    def _over(self, owed: bytes) -> bytes:
        error = self._repair.error
        if error is None:
            return owed
        self.error = error.code
        if self._repair.events:
            return owed
        self.status = error.status
        if self._opened:
            return owed
        return (
            envelope_bytes(error)
            if isinstance(error, UpstreamFailed)
            else encode_engine_error(error)
        )


class PassthroughBody(EngineResponse):
    """An answer that is no chat, passed on as it comes; usage is read at its end."""

    prompt = True

    def __init__(self) -> None:
        self._ends = UsageScanner()
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """See `EngineResponse`."""
        return self._usage

    def feed(self, data: bytes) -> bytes:
        """See `EngineResponse`."""
        self._ends.feed(data)
        return data

    def end(self) -> bytes:
        """See `EngineResponse`."""
        self._usage = self._ends.usage()
        return b""

    def broken(self, error: CortexError) -> None:
        """Half a document can't be mended: the connection is cut, so that nobody takes it for whole."""
        self.error = error.code


class RepairedBody(EngineResponse):
    """A whole chat answer for a client of OpenAI's dialect; one beyond all reason passes as it is.

    Args:
        mend: the body as it should be, and what was mended.
    """

    head = JSON_HEAD

    def __init__(self, mend: Callable[[bytes], tuple[bytes, Counter[str]]]) -> None:
        self._mend = mend
        self._held: list[bytes] | None = []
        self._ends = UsageScanner()
        self._size = 0
        self._usage: Usage | None = None
        self._repairs = NO_REPAIRS

    @property
    def usage(self) -> Usage | None:
        """See `EngineResponse`."""
        return self._usage

    @property
    def repairs(self) -> Counter[str]:
        """See `EngineResponse`."""
        return self._repairs

    def feed(self, data: bytes) -> bytes:
        """Holds the piece, up to a size."""
        if self._held is None:
            self._ends.feed(data)
            return data
        self._held.append(data)
        self._size += len(data)
        if self._size <= _WATCHED:
            return b""
        passed, self._held = b"".join(self._held), None
        self._ends.feed(passed)
        return passed

    def end(self) -> bytes:
        """See `EngineResponse`."""
        if self._held is None:
            self._usage = self._ends.usage()
            return b""
        body, self._repairs = self._mend(b"".join(self._held))
        self._usage = read_usage(body)
        return body

    def broken(self, error: CortexError) -> bytes | None:
        """A plain error as long as nothing has passed."""
        self.error = error.code
        if self._held is None:
            return None
        self.status = error.status
        return envelope_bytes(error)


class EngineError(EngineResponse):
    """An engine's answer of status 400 or more, in the client's dialect.

    Args:
        status: the engine's.
        tell: status and body for the client, of the engine's.
        refusal: says an error of ours in the client's dialect.
    """

    def __init__(
        self, status: int, tell: Callable[[int, bytes], tuple[int, bytes]], refusal: Refusal
    ) -> None:
        self.status = status
        self.error = f"engine_{status}"
        self._tell = tell
        self._refusal = refusal
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        """Keeps the beginning of what the engine says."""
        self._body = (self._body + data)[:_WATCHED]
        return b""

    def end(self) -> bytes:
        """See `EngineResponse`."""
        self.status, body = self._tell(self.status, self._body)
        return body

    def broken(self, error: CortexError) -> bytes:
        """See `EngineResponse`."""
        self.error = error.code
        self.status, body = self._refusal(error)
        return body


class LateError(EngineResponse):
    """An answer that came after the client's stream was opened, but is no stream: told as an event.

    Args:
        status: the engine's.
        event: says an error inside the client's stream.
    """

    def __init__(self, status: int, event: Callable[[CortexError], bytes]) -> None:
        self.error = f"engine_{status}"
        self._status = status
        self._event = event
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        """Keeps the beginning of what the engine says."""
        self._body = (self._body + data)[:_WATCHED]
        return b""

    def end(self) -> bytes:
        """See `EngineResponse`."""
        error = error_from_response(max(400, self._status), self._body)
        self.status = error.status
        return self._event(error)

    def broken(self, error: CortexError) -> bytes:
        """See `EngineResponse`."""
        self.error = error.code
        return self._event(error)


class _Counted(msgspec.Struct):
    usage: Usage | None = None


_decode_counted = msgspec.json.Decoder(_Counted).decode


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer; None when there is none, or the body is no JSON."""
    try:
        return _decode_counted(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class BufferedResponse(EngineResponse):
    """A whole answer that is collected, and told to the client in one piece, in other words perhaps.

    Args:
        tell: makes the client's body of the engine's. Raises: CortexError, which is told instead.
        refusal: says an error in the client's dialect.
    """

    def __init__(self, tell: Callable[[bytes], bytes], refusal: Refusal) -> None:
        self._tell = tell
        self._refusal = refusal
        self._pieces: list[bytes] = []
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """See `EngineResponse`."""
        return self._usage

    def feed(self, data: bytes) -> bytes:
        """Keeps the piece."""
        self._pieces.append(data)
        return b""

    def end(self) -> bytes:
        """See `EngineResponse`."""
        return self._told(b"".join(self._pieces))

    def broken(self, error: CortexError) -> bytes:
        """Nothing was told yet, so the error is a plain one."""
        return self._refused(error)

    def _told(self, body: bytes) -> bytes:
        self._usage = read_usage(body)
        try:
            return self._tell(body)
        except CortexError as failed:
            return self._refused(failed)

    def _refused(self, error: CortexError) -> bytes:
        self.error = error.code
        self.status, body = self._refusal(error)
        return body


class AggregatedResponse(BufferedResponse):
    """A stream of an engine that was asked for one only so that it can be cancelled, put together again."""

    def __init__(
        self, assembler: StreamAggregator, tell: Callable[[bytes], bytes], refusal: Refusal
    ) -> None:
        super().__init__(tell, refusal)
        self._assembler = assembler

    def feed(self, data: bytes) -> bytes:
        """See `EngineResponse`."""
        self._assembler.feed(data)
        return b""

    def end(self) -> bytes:
        """See `EngineResponse`."""
        try:
            return self._told(self._assembler.end())
        except CortexError as failed:
            return self._refused(failed)


class TranslatedStream(EngineResponse):
    """A stream in another dialect. Until its first event is out, an error is still a plain one."""

    def __init__(self, stream: StreamWriter, refusal: Refusal) -> None:
        self._stream = stream
        self._refusal = refusal
        self._events = 0

    @property
    def usage(self) -> Usage | None:
        """See `EngineResponse`."""
        return self._stream.usage

    @property
    def lingering(self) -> bool:
        """See `EngineResponse`."""
        return self._stream.lingering

    @property
    def complete(self) -> bool:
        """See `EngineResponse`."""
        return self._stream.complete

    @property
    def events(self) -> int:
        """See `EngineResponse`."""
        return self._events

    @property
    def repairs(self) -> Counter[str]:
        """See `EngineResponse`."""
        return (
            Counter(malformed_chunk=self._stream.malformed)
            if self._stream.malformed
            else NO_REPAIRS
        )

    def feed(self, data: bytes) -> bytes:
        """See `EngineResponse`."""
        self._events += data.count(b"\n\n")
        owed = self._stream.feed(data)
        return owed if self._stream.started else b""

    def end(self) -> bytes:
        """See `EngineResponse`."""
        return self._over(self._stream.end())

    def broken(self, error: CortexError) -> bytes:
        """See `EngineResponse`."""
        return self._over(self._stream.fail(error))

    def _over(self, owed: bytes) -> bytes:
        error = self._stream.error
        if error is None:
            return owed
        self.error = error.code
        if self._stream.started:
            return owed
        self.status, body = self._refusal(error)
        return body
