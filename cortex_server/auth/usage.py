"""What keys used, counted on the hot path in plain numbers and written down in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Used:
    """What was used of one model with one key."""

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Usage:
    """Counts since the last `taken`."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Used] = {}

    def count(self, key: str, model: str, tokens_in: int, tokens_out: int, *, failed: bool) -> None:
        """Count one request that ended."""
        row = self._rows.get((key, model))
        if row is None:
            row = self._rows[key, model] = Used()
        row.requests += 1
        row.tokens_in += tokens_in
        row.tokens_out += tokens_out
        if failed:
            row.errors += 1

    def put_back(self, rows: Mapping[tuple[str, str], Used]) -> None:
        """Add what was taken and could not be written down."""
        for place, used in rows.items():
            row = self._rows.setdefault(place, Used())
            row.requests += used.requests
            row.errors += used.errors
            row.tokens_in += used.tokens_in
            row.tokens_out += used.tokens_out

    def taken(self) -> Mapping[tuple[str, str], Used]:
        """What was counted, by key and model; counting begins anew."""
        rows, self._rows = self._rows, {}
        return rows
