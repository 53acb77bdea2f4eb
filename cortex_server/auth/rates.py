"""How much a key may still use in the running minute. Pure."""

from __future__ import annotations


class Bucket:
    """An allowance that refills evenly and holds at most what a minute gives.

    Args:
        per_minute: how much a minute gives.
        now: monotonic seconds.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is there now."""
        level = min(self._level + (now - self._at) * self.per_minute / 60, self.per_minute)
        self._level, self._at = level, now
        return max(0.0, (amount - level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Use some of it; what is used up in hindsight leaves a debt."""
        self._level -= amount
