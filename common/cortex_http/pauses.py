"""Time in which this process stood still: stopped by a signal, on a suspended host, or without a processor."""

from __future__ import annotations

from collections.abc import Callable

_TOLERANCE_S = 2.0
"""Delay of a periodic call that is the load of the host rather than a pause."""


class PauseDetector:
    """Notices pauses by the delay of a periodic call, so that they don't count against clients and servers.

    Args:
        interval_s: Seconds between two calls of `tick`.
        now: Returns the time in seconds.
    """

    def __init__(self, interval_s: float, now: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._now = now
        self._last = now()

    def tick(self) -> float:
        """Return the seconds that the process stood still since the last call; 0 for an ordinary delay."""
        now = self._now()
        late = now - self._last - self._interval_s
        self._last = now
        return late if late > _TOLERANCE_S else 0.0
