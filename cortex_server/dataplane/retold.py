"""Answers that reach the client in other words than the engine's: collected, put together, or translated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from cortex_common.errors import CortexError
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.stream.aggregate import Assembler
from cortex_server.dialects.stream.writer import ClientStream
from cortex_server.proxy.response import NO_REPAIRS, Answer, Refusal, read_usage


class Told(Answer):
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
        """See `Answer`."""
        return self._usage

    def feed(self, data: bytes) -> bytes:
        """Keeps the piece."""
        self._pieces.append(data)
        return b""

    def end(self) -> bytes:
        """See `Answer`."""
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


class Assembled(Told):
    """A stream of an engine that was asked for one only so that it can be cancelled, put together again."""

    def __init__(
        self, assembler: Assembler, tell: Callable[[bytes], bytes], refusal: Refusal
    ) -> None:
        super().__init__(tell, refusal)
        self._assembler = assembler

    def feed(self, data: bytes) -> bytes:
        """See `Answer`."""
        self._assembler.feed(data)
        return b""

    def end(self) -> bytes:
        """See `Answer`."""
        try:
            return self._told(self._assembler.end())
        except CortexError as failed:
            return self._refused(failed)


class TranslatedStream(Answer):
    """A stream in another dialect. Until its first event is out, an error is still a plain one."""

    def __init__(self, stream: ClientStream, refusal: Refusal) -> None:
        self._stream = stream
        self._refusal = refusal
        self._events = 0

    @property
    def usage(self) -> Usage | None:
        """See `Answer`."""
        return self._stream.usage

    @property
    def lingering(self) -> bool:
        """See `Answer`."""
        return self._stream.lingering

    @property
    def complete(self) -> bool:
        """See `Answer`."""
        return self._stream.complete

    @property
    def events(self) -> int:
        """See `Answer`."""
        return self._events

    @property
    def repairs(self) -> Counter[str]:
        """See `Answer`."""
        return Counter(malformed=self._stream.malformed) if self._stream.malformed else NO_REPAIRS

    def feed(self, data: bytes) -> bytes:
        """See `Answer`."""
        self._events += data.count(b"\n\n")
        owed = self._stream.feed(data)
        return owed if self._stream.started else b""

    def end(self) -> bytes:
        """See `Answer`."""
        return self._over(self._stream.end())

    def broken(self, error: CortexError) -> bytes:
        """See `Answer`."""
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
