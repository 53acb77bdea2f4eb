"""Which row of the board counts for which key."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_server.workers.board import INSIDE, ROWS, Board


class Rows:
    """A key keeps its row for as long as there is one to spare, so that one made anew goes on where it was.

    Keys beyond the number of rows share the last one, and so their limits.

    Args:
        board: whose rows these are.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rows: dict[str, int] = {}
        self._free = list(range(ROWS - 2, INSIDE, -1))

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """The row of each key."""
        wanted = frozenset(names)
        for name in wanted - self._rows.keys():
            self._rows[name] = self._next(wanted)
        return {name: self._rows[name] for name in wanted}

    def in_flight(self, name: str) -> int:
        """Requests of a key that are under way."""
        row = self._rows.get(name)
        return 0 if row is None else self._board.sum(row)

    def _next(self, wanted: frozenset[str]) -> int:
        if not self._free:
            idle = [n for n in self._rows if n not in wanted and not self.in_flight(n)]
            for name in [n for n in idle if self._rows[n] != ROWS - 1]:
                row = self._rows.pop(name)
                self._board.clear(row)
                self._free.append(row)
        return self._free.pop() if self._free else ROWS - 1
