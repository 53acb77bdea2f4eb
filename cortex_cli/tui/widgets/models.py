"""The models table."""

from __future__ import annotations

from cortex_cli.tui.theme import ink
from cortex_cli.tui.view import ModelRow
from cortex_cli.tui.widgets.table import Column, Table

COLUMNS = (
    Column("badge", "", 2, 0),
    Column("name", "NAME", 18, 0, most=44),
    Column("state", "STATE", 9, 0),
    Column("place", "NODE/DEVICE", 11, 2),
    Column("vram", "VRAM", 6, 3, right=True),
    Column("requests", "REQ/S", 5, 5, right=True),
    Column("tokens", "TOK/S", 5, 6, right=True),
    Column("ttft", "TTFT", 6, 7, right=True),
    Column("queue", "Q", 5, 1, right=True),
    Column("until", "UNTIL", 11, 4, most=1000),
)
_STATES = {
    "ready": "success",
    "loading": "warning",
    "draining": "warning",
    "stopping": "warning",
    "failed": "error",
}


class ModelTable(Table[ModelRow]):
    """The catalogue, a line a model."""

    def __init__(self) -> None:
        super().__init__("models", COLUMNS)

    def tone(self, column: str, value: str) -> str:
        """See `Table.tone`."""
        if column == "state" and value in _STATES:
            return ink(self.app, _STATES[value])
        return f"bold {ink(self.app, 'accent')}" if column == "badge" else ""
