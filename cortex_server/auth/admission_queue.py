"""The bounded queue that admits requests to the gateway, fairly between keys. It has no task and no lock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol

from cortex_common.config.access import LimitsSection
from cortex_common.errors import Busy
from cortex_server.auth.keys import Key

RETRY_AFTER_S = 1.0
"""Seconds after which a rejected request is likely to be admitted."""


class Waiter(Protocol):
    """A request that can wait in the queue."""

    def on_admitted(self) -> None:
        """Handle that the request is admitted after it has waited."""
        ...

    def on_queue_timeout(self) -> None:
        """Handle that the request has waited for as long as the limits allow."""
        ...


class FairQueue:
    """Admits a bounded number of requests and queues a bounded number of others.

    Start-time fair queueing: each key has a virtual time that advances by 1/weight with each request that it queues,
    and the request with the smallest virtual time is admitted first. So a key with a thousand queued requests delays
    the first request of another key by one position, not by a thousand. Higher priorities go first.

    Args:
        loop: event loop whose timers end the wait.
        limits: the bounds.

    Attributes:
        limits: the bounds, which can be replaced at any time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: LimitsSection) -> None:
        self.limits = limits
        self._loop = loop
        self._admitted: set[Waiter] = set()
        self._timers: dict[Waiter, asyncio.TimerHandle] = {}
        self._heap: list[tuple[int, float, int, Waiter]] = []
        self._sequence = itertools.count()
        self._virtual_time = 0.0
        self._last_finish: dict[str, float] = {}

    @property
    def admitted(self) -> int:
        """Number of requests that are admitted and not yet released."""
        return len(self._admitted)

    @property
    def queued(self) -> int:
        """Number of requests in the queue."""
        return len(self._timers)

    def enter(self, waiter: Waiter, key: Key, priority: int) -> bool:
        """Admit the request now if there is capacity, otherwise queue it.

        Returns:
            True if it is admitted; False if it is queued, so that `on_admitted` or `on_queue_timeout` will be called.

        Raises:
            Busy: the queue is full.
        """
        if len(self._admitted) < self.limits.max_in_flight and not self._timers:
            self._admitted.add(waiter)
            return True
        self._push(waiter, key, priority)
        return False

    def leave(self, waiter: Waiter) -> None:
        """Remove a request that has finished or no longer waits."""
        if (timer := self._timers.pop(waiter, None)) is not None:
            timer.cancel()
        else:
            self._admitted.discard(waiter)
        if self._timers:
            self._admit_queued()

    def _push(self, waiter: Waiter, key: Key, priority: int) -> None:
        if len(self._timers) >= self.limits.max_queued:
            raise queue_full()
        finish = max(self._virtual_time, self._last_finish.get(key.name, 0.0))
        finish += 1 / key.terms.weight
        self._last_finish[key.name] = finish
        capped = min(priority, key.terms.max_priority)
        heapq.heappush(self._heap, (-capped, finish, next(self._sequence), waiter))
        self._timers[waiter] = self._loop.call_later(
            self.limits.queue_timeout_s, self._time_out, waiter
        )
        # Entries of requests that left the queue stay in the heap until there are too many of them.
        if len(self._heap) > 2 * len(self._timers) + 64:
            self._heap = [entry for entry in self._heap if entry[3] in self._timers]
            heapq.heapify(self._heap)

    def _admit_queued(self) -> None:
        while self._timers and len(self._admitted) < self.limits.max_in_flight:
            _, finish, _, waiter = heapq.heappop(self._heap)
            timer = self._timers.pop(waiter, None)
            if timer is None:
                continue
            timer.cancel()
            self._virtual_time = max(self._virtual_time, finish)
            self._admitted.add(waiter)
            # Deferred, because a request that fails immediately would re-enter this method.
            self._loop.call_soon(waiter.on_admitted)
        if not self._timers:
            self._heap.clear()
            self._last_finish.clear()

    def _time_out(self, waiter: Waiter) -> None:
        self._timers.pop(waiter, None)
        waiter.on_queue_timeout()


def queue_full() -> Busy:
    """Return the error for a request that cannot be admitted or queued."""
    return Busy(
        "the gateway is at capacity",
        hints=["max_in_flight and max_queued in [limits] of cortex.toml set its capacity"],
        retry_after=RETRY_AFTER_S,
    )
