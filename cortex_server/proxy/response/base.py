"""Responses of engines, converted to what the client gets.

An `EngineResponse` receives each piece of the engine's body and returns the bytes for the client: the same ones,
repaired where necessary, or translated to another dialect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from cortex_common.errors import CortexError
from cortex_server.dialects.chat import Usage
from cortex_server.dialects.stream.repair import StreamRepair

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
