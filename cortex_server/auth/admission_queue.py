"""How many requests are worked on at once, and who goes first when more come. No task, no lock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol

from cortex_common.config.access import LimitsSection
from cortex_common.errors import Busy
from cortex_server.auth.keys import Key

RETRY_S = 1.0
"""Seconds after which somebody who was sent away may find a place."""


class Waiter(Protocol):
    """A request that wants to be worked on."""

    def admitted(self) -> None:
        """It is its turn."""
        ...

    def turned_away(self) -> None:
        """It has waited for as long as it may."""
        ...


class FairQueue:
    """Lets a bounded number in and keeps a bounded queue, shared fairly between keys.

    Start-time fair queueing: each key has a virtual time that moves on by 1/weight with each request that it queues,
    and the smallest goes first. So a key with a thousand requests queued delays another's first one by one place,
    not by a thousand. A higher priority goes before all of that.

    Args:
        loop: whose timers end the wait.
        limits: how many.

    Attributes:
        limits: may be replaced at any time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: LimitsSection) -> None:
        self.limits = limits
        self._loop = loop
        self._inside: set[Waiter] = set()
        self._waiting: dict[Waiter, asyncio.TimerHandle] = {}
        self._queue: list[tuple[int, float, int, Waiter]] = []
        self._count = itertools.count()
        self._now = 0.0
        self._last: dict[str, float] = {}

    @property
    def inside(self) -> int:
        """Requests that are worked on."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def enter(self, guest: Waiter, key: Key, priority: int) -> bool:
        """Admit the request now if there is capacity, else queue it.

        Returns:
            True when it was admitted; False when it waits, and `admitted` or `turned_away` will be called.

        Raises:
            Busy: The queue is full.
        """
        if len(self._inside) < self.limits.max_in_flight and not self._waiting:
            self._inside.add(guest)
            return True
        self._queue_up(guest, key, priority)
        return False

    def _queue_up(self, guest: Waiter, key: Key, priority: int) -> None:
        if len(self._waiting) >= self.limits.max_queued:
            raise full()
        at = max(self._now, self._last.get(key.name, 0.0)) + 1 / key.terms.weight
        self._last[key.name] = at
        wanted = min(priority, key.terms.max_priority)
        heapq.heappush(self._queue, (-wanted, at, next(self._count), guest))
        self._waiting[guest] = self._loop.call_later(
            self.limits.queue_timeout_s, self._turn_away, guest
        )
        if len(self._queue) > 2 * len(self._waiting) + 64:
            self._queue = [entry for entry in self._queue if entry[3] in self._waiting]
            heapq.heapify(self._queue)

    def leave(self, guest: Waiter) -> None:
        """Remove a request that has finished or no longer waits."""
        if (timer := self._waiting.pop(guest, None)) is not None:
            timer.cancel()
        else:
            self._inside.discard(guest)
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._has_place():
            _, at, _, guest = heapq.heappop(self._queue)
            timer = self._waiting.pop(guest, None)
            if timer is None:
                continue
            timer.cancel()
            self._now = max(self._now, at)
            self._inside.add(guest)
            # Later, because a guest that fails at once would come back here from inside.
            self._loop.call_soon(guest.admitted)
        if not self._waiting:
            self._queue.clear()
            self._last.clear()

    def _has_place(self) -> bool:
        return len(self._inside) < self.limits.max_in_flight

    def _turn_away(self, guest: Waiter) -> None:
        self._waiting.pop(guest, None)
        guest.turned_away()


def full() -> Busy:
    """The error for a request that finds no place."""
    return Busy(
        "the gateway works on as many requests as it may",
        hints=["[limits] max_in_flight and max_queued in cortex.toml set how many"],
        retry_after=RETRY_S,
    )
