"""The client's side of a request: where a handler writes the response."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Downstream(Protocol):
    """The client's side of a request.

    No call blocks. What they send may be buffered until `flush` or `end`, so that it leaves with one system call.
    """

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """Send the response head.

        Args:
            status: HTTP status.
            lines: Header lines, each with its line end, without framing headers.
            length: Length of the body; None when it is not known.
        """

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""

    def flush(self) -> None:
        """Send what is buffered."""

    def chunked_transport(self) -> asyncio.Transport | None:
        """Return the transport when it takes raw HTTP/1.1 chunks of the body now, else None."""

    def pause_reading(self) -> None:
        """Stop reading the request's body."""

    def resume_reading(self) -> None:
        """Read the request's body again."""

    def end(self) -> None:
        """Finish the response."""

    def truncate(self) -> None:
        """Send what is buffered and close the connection without the end of the body, so that the client sees a cut."""

    def abort(self) -> None:
        """Close the connection because the response is incomplete and has no other way to say so."""

    def is_unresponsive(self) -> bool:
        """Return whether the client's host no longer acknowledges data."""


class NullDownstream:
    """Discards everything: the client of a request that has finished.

    A finished handler refers to this instead of its connection, so that no reference cycle is left to the garbage
    collector.
    """

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def chunked_transport(self) -> None:
        """Return None."""

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def truncate(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""

    def is_unresponsive(self) -> bool:
        """Return False."""
        return False


NULL_DOWNSTREAM: Downstream = NullDownstream()
