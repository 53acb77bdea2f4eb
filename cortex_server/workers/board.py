"""The board: memory that all workers and the control process see, for what must be counted over all of them at once.

A row is a limit (the requests inside; a key), a column a worker, whose cell nobody else writes. A worker that takes a
place counts it first and looks at the row's sum then: two that come for the last place at the same moment may both step
back, but the sum never stands above the limit. No lock, and what a worker that died had counted is wiped with its
column.

What flows (requests and tokens a minute) can't be counted so: its cells are changed under a lock of the kernel's, which
a process gives up when it dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cortex_server.auth.keys import TokenBucket

ROWS = 16384
"""Keys with limits, and one; memory is taken only for those in use."""

INSIDE = 0
"""The row of the requests that are worked on; the control process's cell has those that it let in a moment ago."""

_CELL = 8
_FLOWS = 6


@dataclass(slots=True)
class Flows:
    """The allowances of a row: each as its size a minute, what is left, and since when; size 0 before its first use."""

    requests: TokenBucket | None
    tokens: TokenBucket | None


class Board:
    """See the module.

    Args:
        descriptor: of the memory.
        workers: how many columns; one more is the control process's, and the last.
        column: which one is written here.
    """

    def __init__(self, descriptor: int, workers: int, column: int) -> None:
        self.descriptor = descriptor
        self._columns = workers + 1
        self._column = column
        self._map = mmap.mmap(descriptor, size_of(workers))
        view = memoryview(self._map)
        flows = ROWS * self._columns * _CELL + _CELL
        self._queued = view[:_CELL].cast("q")
        self._cells = view[_CELL:flows].cast("q")
        self._flows = view[flows:].cast("d")

    @classmethod
    def make(cls, workers: int) -> Board:
        """A new one, for the control process."""
        descriptor = _memory()
        os.ftruncate(descriptor, size_of(workers))
        return cls(descriptor, workers, workers)

    @property
    def queued(self) -> int:
        """Requests in the control process's queue."""
        return self._queued[0]

    @queued.setter
    def queued(self, count: int) -> None:
        self._queued[0] = count

    def sum(self, row: int) -> int:
        """What all columns have in a row."""
        at = row * self._columns
        return sum(self._cells[at : at + self._columns])

    def put(self, row: int, count: int) -> None:
        """Write this column's cell of a row."""
        self._cells[row * self._columns + self._column] = count

    def take(self, row: int, most: int) -> bool:
        """Count one more in a row, unless that makes more than `most`."""
        at = row * self._columns
        own = at + self._column
        self._cells[own] += 1
        if sum(self._cells[at : at + self._columns]) <= most:
            return True
        self._cells[own] -= 1
        return False

    def add(self, row: int, change: int) -> None:
        """Count in this column's cell of a row."""
        self._cells[row * self._columns + self._column] += change

    def wipe(self, column: int) -> None:
        """Forget what a worker had counted."""
        self._cells[column :: self._columns] = memoryview(bytes(ROWS * _CELL)).cast("q")

    def clear(self, row: int) -> None:
        """Make a row ready for another use."""
        self._flows[row * _FLOWS : (row + 1) * _FLOWS] = memoryview(bytes(_FLOWS * _CELL)).cast("d")

    @contextmanager
    def flows(
        self, row: int, requests: int | None, tokens: int | None, now: Callable[[], float]
    ) -> Iterator[Flows]:
        """The allowances of a row, for this process alone while it looks at them.

        Args:
            row: whose they are.
            requests: a minute; None for no limit.
            tokens: a minute; None for no limit.
            now: monotonic seconds, the same clock in all processes.
        """
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, row)
        try:
            found = Flows(self._bucket(row, 0, requests, now), self._bucket(row, 3, tokens, now))
            yield found
            for at, bucket in ((0, found.requests), (3, found.tokens)):
                if bucket is not None:
                    state = (float(bucket.per_minute), *bucket.state)
                    for place, value in enumerate(state, start=row * _FLOWS + at):
                        self._flows[place] = value
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, row)

    def _bucket(
        self, row: int, at: int, per_minute: int | None, now: Callable[[], float]
    ) -> TokenBucket | None:
        if per_minute is None:
            return None
        size, level, since = self._flows[row * _FLOWS + at : row * _FLOWS + at + 3]
        if size != per_minute:
            return TokenBucket(per_minute, now())
        return TokenBucket(per_minute, since, level)

    def close(self) -> None:
        """Let go of the memory."""
        self._queued.release()
        self._cells.release()
        self._flows.release()
        self._map.close()
        os.close(self.descriptor)


def _memory() -> int:
    """A descriptor of memory that has no name and goes with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cortex-board")
    # A Python built for the headers of older systems, as uv's is, lacks the call.
    return os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)  # noqa: S108 - the file has no name there


def size_of(workers: int) -> int:
    """Bytes of a board."""
    return _CELL + ROWS * (workers + 1 + _FLOWS) * _CELL
