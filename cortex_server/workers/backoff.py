"""How long to wait before a worker that died is replaced. Pure."""

from __future__ import annotations

FIRST_S, LONGEST_S = 0.5, 30.0

STEADY_S = 60.0
"""A worker that lived for as long died of something else than its predecessor."""


class Backoff:
    """The first is replaced at once; those that die soon after, later and later."""

    def __init__(self) -> None:
        self._next = 0.0

    def died(self, lived_s: float) -> float:
        """Seconds until the next one may start.

        Args:
            lived_s: how long the last one did.
        """
        if lived_s >= STEADY_S:
            self._next = 0.0
        pause = self._next
        self._next = min(max(FIRST_S, pause * 2), LONGEST_S)
        return pause
