"""How much a key may still use in the running minute. Pure."""

from __future__ import annotations


class Bucket:
    """An allowance that refills evenly and holds at most what a minute gives.

    Args:
        per_minute: how much a minute gives.
        now: monotonic seconds.
        level: how much is there; by default all of it.
    """

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: int, now: float, level: float | None = None) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute) if level is None else level
        self._at = now

    @property
    def state(self) -> tuple[float, float]:
        """How much was there, and when, in monotonic seconds."""
        return self._level, self._at

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 when it is there now."""
        level = min(self._level + (now - self._at) * self.per_minute / 60, self.per_minute)
        self._level, self._at = level, now
        return max(0.0, (amount - level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Use some of it; what is used up in hindsight leaves a debt."""
        self._level -= amount
