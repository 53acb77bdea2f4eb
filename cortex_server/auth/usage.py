"""Usage of API keys: counted in memory for every request, and saved in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class UsageCounts:
    """What one key used of one model."""

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: UsageCounts) -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.errors += other.errors
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out


class UsageCounter:
    """Counts by key and model since the last `take`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], UsageCounts] = {}

    def count(self, key: str, model: str, tokens_in: int, tokens_out: int, *, failed: bool) -> None:
        """Count one finished request."""
        row = self._counts.get((key, model))
        if row is None:
            row = self._counts[key, model] = UsageCounts()
        row.requests += 1
        row.tokens_in += tokens_in
        row.tokens_out += tokens_out
        if failed:
            row.errors += 1

    def take(self) -> Mapping[tuple[str, str], UsageCounts]:
        """Return the counts by key and model, and reset them."""
        counts, self._counts = self._counts, {}
        return counts

    def put_back(self, counts: Mapping[tuple[str, str], UsageCounts]) -> None:
        """Add counts that were taken but could not be saved."""
        for key_and_model, row in counts.items():
            self._counts.setdefault(key_and_model, UsageCounts()).add(row)
