"""The one queue of all workers' requests that found no place: the turnstile, with the board's count of places."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cortex_common.config.access import LimitsSection
from cortex_common.errors import Busy
from cortex_server.auth.admission_queue import FairQueue, Waiter
from cortex_server.auth.keys import Key
from cortex_server.workers.board import INSIDE, Board
from cortex_server.workers.wire import Channel, ToControl, YourTurn


@dataclass(frozen=True, slots=True, eq=False)
class Queued:
    """A worker's request that waits.

    Attributes:
        ask: by which the worker knows it.
        channel: to the worker.
    """

    ask: int
    channel: Channel[ToControl]

    def admitted(self) -> None:
        """See `Waiter`."""
        self.channel.send(YourTurn(self.ask, go=True))

    def turned_away(self) -> None:
        """See `Waiter`."""
        self.channel.send(YourTurn(self.ask, go=False))


class SharedQueue(FairQueue):
    """See the module. Who is inside here was let in a moment ago, and its worker has not counted it yet.

    Args:
        loop: whose timers end the wait.
        limits: how many.
        board: where workers count who is inside.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: LimitsSection, board: Board
    ) -> None:
        super().__init__(loop, limits)
        self._board = board

    def join(self, guest: Waiter, key: Key, priority: int) -> None:
        """Let a guest in as soon as there is a place."""
        try:
            self._queue_up(guest, key, priority)
        except Busy:
            guest.turned_away()
        self.look()

    def leave(self, guest: Waiter) -> None:
        """See `Doors`."""
        super().leave(guest)
        self.look()

    def look(self) -> None:
        """Let in whom there is a place for."""
        # Told first: whoever leaves after this sees that somebody waits, and says so.
        self._board.queued = len(self._waiting)
        self._admit()
        self._board.put(INSIDE, len(self._inside))
        self._board.queued = len(self._waiting)

    def _has_place(self) -> bool:
        self._board.put(INSIDE, len(self._inside))
        return self._board.sum(INSIDE) < self.limits.max_in_flight

    def _turn_away(self, guest: Waiter) -> None:
        super()._turn_away(guest)
        self.look()
