"""The neuron's event log: lifecycle entries, logged and kept for subscribers of /events."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from cortex_common.clock import Clock
from cortex_common.log import event as log_event
from cortex_common.log import level_name as name_of_level
from cortex_common.log import to_field_value
from cortex_common.schema.instances import LifecycleEntry

log = logging.getLogger(__name__)

_MAX_ENTRIES = 256


class ChangeCounter:
    """A counter that tasks can wait on.

    Nothing is queued: a slow subscriber skips intermediate values and sees only the latest one.

    Attributes:
        closed: no further changes will follow.
    """

    def __init__(self) -> None:
        self._count = 0
        self.closed = False
        self._next = asyncio.Event()

    def increment(self) -> None:
        """Wake all subscribers because something changed."""
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    def close(self) -> None:
        """End all subscriptions after they have delivered the last change."""
        self.closed = True
        self.increment()

    async def subscribe(self, idle_s: float) -> AsyncGenerator[int | None]:
        """Yield the current count, then the count after each change.

        Args:
            idle_s: seconds without a change after which None is yielded.
        """
        last_count = -1
        while True:
            if last_count != self._count:
                last_count = self._count
                yield last_count
                continue
            if self.closed:
                return
            try:
                await asyncio.wait_for(self._next.wait(), idle_s)
            except TimeoutError:
                yield None


class EventLog:
    """The latest lifecycle entries, numbered from 1 since the neuron started.

    Args:
        clock: provides the entries' timestamps.
        changes: incremented for each entry.

    Attributes:
        last_number: number of the latest entry; 0 before the first.
    """

    def __init__(self, clock: Clock, changes: ChangeCounter) -> None:
        self.last_number = 0
        self._clock = clock
        self._changes = changes
        self._entries: deque[tuple[int, LifecycleEntry]] = deque(maxlen=_MAX_ENTRIES)

    def record(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        """Log an event and keep it for subscribers."""
        log_event(log, event, level, **fields)
        self.last_number += 1
        texts = {n: str(to_field_value(value)) for n, value in fields.items() if value is not None}
        level_name = name_of_level(level)
        entry = LifecycleEntry(at=self._clock.unix(), event=event, level=level_name, fields=texts)
        self._entries.append((self.last_number, entry))
        self._changes.increment()

    def since(self, number: int) -> Iterator[tuple[int, LifecycleEntry]]:
        """Yield the retained entries with a number greater than `number`."""
        return ((n, entry) for n, entry in tuple(self._entries) if n > number)
