"""A histogram of plain numbers: an observation costs a tenth of prometheus_client's."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts by bucket, as Prometheus wants them cumulated at scrape.

    Args:
        bounds: upper bounds of the buckets, ascending, without infinity.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def taken(self) -> tuple[tuple[int, ...], float]:
        """What was counted, and the sum of it; counting begins anew."""
        taken = tuple(self.counts), self.total
        self.counts, self.total = [0] * len(self.counts), 0.0
        return taken

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what another histogram of the same bounds had counted."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.total += total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts with the bound of each bucket as text, "+Inf" last."""
        cumulated, rows = 0, []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            cumulated += count
            rows.append(("+Inf" if bound is None else str(float(bound)), float(cumulated)))
        return rows
