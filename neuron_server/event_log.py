"""What the neuron decided and what happened to its instances: logged, and kept for readers of /events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from cortex_common.clock import Clock
from cortex_common.log import event as log_event
from cortex_common.log import level_name as name_of_level
from cortex_common.log import plain
from cortex_common.schema.instances import LifecycleEntry


class ChangeCounter:
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


log = logging.getLogger(__name__)

_KEPT = 256


class EventLog:
    """The latest entries, numbered from 1 over the neuron's life.

    Args:
        clock: for the times of entries.
        changes: told of each entry.
    """

    def __init__(self, clock: Clock, changes: ChangeCounter) -> None:
        self.last = 0
        self._clock = clock
        self._changes = changes
        self._entries: deque[tuple[int, LifecycleEntry]] = deque(maxlen=_KEPT)

    def note(self, event: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it."""
        log_event(log, event, level, **facts)
        self.last += 1
        shown = {n: str(plain(value)) for n, value in facts.items() if value is not None}
        level_name = name_of_level(level)
        entry = LifecycleEntry(at=self._clock.unix(), event=event, level=level_name, facts=shown)
        self._entries.append((self.last, entry))
        self._changes.publish()

    def since(self, number: int) -> Iterator[tuple[int, LifecycleEntry]]:
        """The entries after a number that are still kept."""
        return ((n, entry) for n, entry in tuple(self._entries) if n > number)
