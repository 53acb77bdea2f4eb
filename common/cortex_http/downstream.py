"""The client's side of a request."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Downstream(Protocol):
    """The client's side of a request, as a face gives it.

    None of these calls waits, and what they send may be held until `flush` or `end`, so that it leaves with one system
    call.
    """

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """Send the head of these lines; `length` None means that the end shows by itself."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""

    def flush(self) -> None:
        """Send what is held."""

    def chunked(self) -> asyncio.Transport | None:
        """What takes HTTP/1.1's chunks of the body as they are; None where nothing does."""

    def end(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """Cut the connection, because the answer is not whole and can't say so."""

    def vanished(self) -> bool:
        """Whether the client's host takes nothing any more, without a word."""


class NullDownstream:
    """The client of a request that is over.

    Face and exchange let go of each other, so that no cycle is left to the garbage collector.
    """

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """Goes nowhere."""

    def write(self, data: bytes) -> None:
        """Goes nowhere."""

    def flush(self) -> None:
        """Nothing is held."""

    def chunked(self) -> None:
        """There is none."""

    def end(self) -> None:
        """It ended before."""

    def abort(self) -> None:
        """It ended before."""

    def vanished(self) -> bool:
        """It ended before."""
        return False


NULL_DOWNSTREAM: Downstream = NullDownstream()
