"""The memory that all request bodies may use together."""

from __future__ import annotations

from cortex_common.errors import Unavailable


class BodyBudget:
    """Counts the bodies in memory, those that are still arriving included.

    Attributes:
        limit: Limit in bytes.
        held: Bytes in memory.
    """

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Count a piece of a body.

        Raises:
            Unavailable: It exceeds the limit, and was not counted.
        """
        if self.held + size > self.limit:
            raise Unavailable(
                f"request bodies already use {self.held >> 20} MiB of the gateway's memory",
                hints=["retry soon", "[limits] max_bodies_mb in cortex.toml sets the limit"],
                retry_after=1.0,
            )
        self.held += size

    def release(self, size: int) -> None:
        """Stop counting pieces."""
        self.held -= size
