"""A worker's gate and doors: limits that hold over all workers, by what stands on the board."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping

from cortex_common.config.access import LimitsSection
from cortex_server.auth.access_control import INFER, AccessControl, Headers, limited, stopping
from cortex_server.auth.admission_queue import Waiter
from cortex_server.auth.keys import Key
from cortex_server.workers.board import INSIDE, Board
from cortex_server.workers.wire import Channel, PlaceFree, Queue, ToControl, ToWorker, Unqueue


class SharedGate(AccessControl):
    """A gate that counts on the board. Usage is counted by the control process, with each request that ended.

    Args:
        board: where keys have rows.
    """

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board
        self._rows: dict[str, int] = {}

    def use_rows(self, rows: Mapping[str, int]) -> None:
        """Learn which row each key has; those of revoked keys are kept, as requests of theirs may go on."""
        self._rows |= rows

    def enter(self, headers: Headers, *, own: bool) -> Key:
        """See `AccessControl.enter`."""
        if self.stopping:
            raise stopping()
        key = self.check(headers, INFER, own=own)
        row = self._rows.get(key.name)
        if row is not None:
            self._take(key, row)
        return key

    def leave(  # `Reporter` tells the rest
        self,
        key: Key,
        model: str,  # noqa: ARG002
        tokens_in: int,
        tokens_out: int,
        *,
        failed: bool,  # noqa: ARG002
    ) -> None:
        """See `AccessControl.leave`."""
        row = self._rows.get(key.name)
        if row is None:
            return
        self._board.add(row, -1)
        per_minute = key.terms.limits.tokens_per_minute
        if per_minute is not None:
            with self._board.flows(row, None, per_minute, time.monotonic) as flows:
                assert flows.tokens is not None
                flows.tokens.take(tokens_in + tokens_out)

    def _take(self, key: Key, row: int) -> None:
        limits = key.terms.limits
        most = limits.max_in_flight
        if most is None:
            self._board.add(row, 1)
        elif not self._board.take(row, most):
            raise limited(key, f"{most} requests under way", 1.0)
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return
        refused = self._flow(key, row)
        if refused is not None:
            self._board.add(row, -1)
            raise limited(key, *refused)

    def _flow(self, key: Key, row: int) -> tuple[str, float] | None:
        """Use one of the requests a minute; which limit stands in the way, and for how many seconds."""
        limits = key.terms.limits
        with self._board.flows(
            row, limits.requests_per_minute, limits.tokens_per_minute, time.monotonic
        ) as flows:
            now = time.monotonic()
            if flows.tokens is not None and (wait := flows.tokens.wait(1.0, now)):
                return f"{flows.tokens.per_minute} tokens a minute", wait
            if flows.requests is not None:
                if wait := flows.requests.wait(1.0, now):
                    return f"{flows.requests.per_minute} requests a minute", wait
                flows.requests.take(1.0)
        return None


class SharedDoors:
    """`Doors` that count on the board who is inside, and send whoever finds no place to the control process's queue.

    So there is one queue, fair over all keys and workers; and where there are places nobody is asked.

    Args:
        board: of all.
        channel: to the control process.
        limits: how many.

    Attributes:
        limits: may be replaced at any time.
    """

    def __init__(self, board: Board, channel: Channel[ToWorker], limits: LimitsSection) -> None:
        self.limits = limits
        self._board = board
        self._channel = channel
        self._inside: set[Waiter] = set()
        self._asks: dict[Waiter, int] = {}
        self._guests: dict[int, Waiter] = {}
        self._numbers = itertools.count()

    @property
    def inside(self) -> int:
        """Requests of this worker that are worked on."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """Requests of this worker in the queue."""
        return len(self._asks)

    def enter(self, guest: Waiter, key: Key, priority: int) -> bool:
        """See `Doors`; a full queue turns the guest away later."""
        if not self._board.queued and self._board.take(INSIDE, self.limits.max_in_flight):
            self._inside.add(guest)
            return True
        ask = next(self._numbers)
        self._asks[guest], self._guests[ask] = ask, guest
        self._say(Queue(ask, key.name, priority))
        return False

    def leave(self, guest: Waiter) -> None:
        """See `Doors`."""
        if (ask := self._asks.pop(guest, None)) is not None:
            del self._guests[ask]
            self._say(Unqueue(ask))
        elif guest in self._inside:
            self._inside.remove(guest)
            self._board.add(INSIDE, -1)
            if self._board.queued:
                self._say(PlaceFree())

    def called(self, ask: int, *, go: bool) -> None:
        """A guest's turn has come, or it has waited for too long; it may have left meanwhile."""
        guest = self._guests.pop(ask, None)
        if guest is None:
            return
        del self._asks[guest]
        if go:
            self._inside.add(guest)
            self._board.add(INSIDE, 1)
        self._say(Unqueue(ask))
        if go:
            guest.admitted()
        else:
            guest.turned_away()

    def _say(self, message: ToControl) -> None:
        self._channel.send(message)
