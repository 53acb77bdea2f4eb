"""Tells readers that something changed; what changed they look up themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator


class Changes:
    """A counter that can be waited for. Nothing is queued: a slow reader sees the latest number only.

    Attributes:
        ended: readers are let go.
    """

    def __init__(self) -> None:
        self._number = 0
        self.ended = False
        self._next = asyncio.Event()

    def publish(self) -> None:
        """Something changed."""
        self._number += 1
        self._next.set()
        self._next = asyncio.Event()

    def end(self) -> None:
        """Let all readers go, once they have seen the last change."""
        self.ended = True
        self.publish()

    async def follow(self, silence_s: float) -> AsyncGenerator[int | None]:
        """The number now, and after each change; None when nothing changed for a while."""
        seen = -1
        while True:
            if seen != self._number:
                seen = self._number
                yield seen
                continue
            if self.ended:
                return
            try:
                await asyncio.wait_for(self._next.wait(), silence_s)
            except TimeoutError:
                yield None
