"""The models table."""

from __future__ import annotations

from typing_extensions import override

from cortex_cli.tui.theme import theme_color
from cortex_cli.tui.view import ModelRow
from cortex_cli.tui.widgets.table import Column, Table

COLUMNS = (
    Column("badge", "", 2, 0),
    Column("name", "NAME", 18, 0, max_width=44),
    Column("state", "STATE", 9, 0),
    Column("place", "NODE/DEVICE", 11, 2),
    Column("vram", "VRAM", 6, 3, right=True),
    Column("requests", "REQ/S", 5, 5, right=True),
    Column("tokens", "TOK/S", 5, 6, right=True),
    Column("ttft", "TTFT", 6, 7, right=True),
    Column("queue", "Q", 5, 1, right=True),
    Column("status", "STATUS", 11, 4, max_width=1000),
)
_STATE_COLORS = {
    "ready": "success",
    "loading": "warning",
    "draining": "warning",
    "stopping": "warning",
    "failed": "error",
}


class ModelTable(Table[ModelRow]):
    """The catalogue, one row per model."""

    def __init__(self) -> None:
        super().__init__("models", COLUMNS)

    @override
    def cell_style(self, column: str, value: str) -> str:
        if column == "state" and value in _STATE_COLORS:
            return theme_color(self.app, _STATE_COLORS[value])
        return f"bold {theme_color(self.app, 'accent')}" if column == "badge" else ""
