"""What the neuron decided and what happened to its instances: logged, and kept for readers of /events."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

from cortex_common.clock import Clock
from cortex_common.log import event as log_event
from cortex_common.log import level_name as name_of_level
from cortex_common.log import plain
from cortex_common.schema.instances import LifecycleEntry
from neuron_server.changes import Changes

log = logging.getLogger(__name__)

_KEPT = 256


class Journal:
    """The latest entries, numbered from 1 over the neuron's life.

    Args:
        clock: for the times of entries.
        changes: told of each entry.
    """

    def __init__(self, clock: Clock, changes: Changes) -> None:
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
