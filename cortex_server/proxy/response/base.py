"""Responses of engines, converted to what the client gets.

An `EngineResponse` receives each piece of the engine's body and returns the bytes for the client: the same ones,
repaired where necessary, or translated to another dialect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import ClassVar

from cortex_common.errors import CortexError
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.usage import Usage

JSON_HEAD = b"content-type: application/json\r\n"
STREAM_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\n"
)

NO_REPAIRS: Counter[str] = Counter()


class EngineResponse(ABC):
    """Converts the engine's body piece by piece.

    Attributes:
        forwards_head: Whether the client gets the engine's status and headers.
        head: Header lines for the client, unless it gets the engine's.
        shares_stream: Whether it writes to the client's stream, so that after keep-alive comments no other response
            can take its place.
        failure: What went wrong in the response, once it did. As long as nothing of the response has been sent, the
            client gets a plain error instead of its output.
    """

    forwards_head: ClassVar[bool] = False
    head: ClassVar[bytes] = STREAM_HEAD
    shares_stream: ClassVar[bool] = False

    failure: CortexError | None = None

    @property
    def usage(self) -> Usage | None:
        """Token counts of the engine, once it has reported them."""
        return None

    @property
    def events(self) -> int:
        """Number of events of the engine's stream so far, about one per token; 0 if its response arrives whole."""
        return 0

    @property
    def is_streamed(self) -> bool:
        """Whether the client gets the response as it is generated."""
        return False

    @property
    def repairs(self) -> Counter[str]:
        """Number of repairs by kind."""
        return NO_REPAIRS

    @property
    def lingering(self) -> bool:
        """Whether the response is complete but the engine's stream has not ended: only usage can still follow."""
        return False

    @property
    def complete(self) -> bool:
        """Whether the client has got the end, although the engine may not have closed its stream yet."""
        return False

    @property
    def output_tokens(self) -> int:
        """Estimate of the completion tokens so far, for engines that report no usage."""
        return self.events

    @property
    def repair(self) -> StreamRepair | None:
        """The repair of a stream whose clean events are forwarded as they are; None for any other response."""
        return None

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Return what the client gets for a piece of the engine's body.

        Raises:
            CortexError: The response can't be used.
        """

    @abstractmethod
    def end(self) -> bytes:
        """Return the rest for the client once the engine's response is complete."""

    @abstractmethod
    def fail(self, error: CortexError) -> bytes | None:
        """Return how a response ends that was broken off; None when only a closed connection can say so.

        Called only once something of the response has been sent.
        """
