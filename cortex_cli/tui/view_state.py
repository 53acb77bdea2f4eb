"""What the screen knows of the fleet: the latest snapshot, the one that is held, and whether the gateway is there."""

from __future__ import annotations

from cortex_cli.tui.history import History
from cortex_cli.watch import Lost
from cortex_common.schema.fleet import FleetSnapshot

LOST = "LOST"
"""The mode of a screen without its gateway."""


class Known:
    """Changed by what the source tells and by the key that freezes.

    Attributes:
        latest: of all snapshots.
        history: of the rates.
        lost: why there is no gateway now.
    """

    def __init__(self) -> None:
        self.latest: FleetSnapshot | None = None
        self.history = History()
        self.lost: Lost | None = None
        self._held: FleetSnapshot | None = None

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """What is to be shown."""
        return self._held or self.latest

    def take(self, snapshot: FleetSnapshot) -> bool:
        """Something came from the gateway; whether that must be shown at once, as it was lost or never seen."""
        news = self.lost is not None or self.latest is None
        self.lost = None
        self.history = self.history.after(snapshot)
        self.latest = snapshot
        return news

    def freeze(self) -> None:
        """Hold what is shown, or go on with the latest."""
        self._held = None if self._held else self.latest

    def mode(self, *, live: bool, read_only: bool) -> str:
        """The words in the corner: how the picture comes about, and what the screen may do."""
        if self.lost is not None:
            return LOST
        if self._held is not None:
            return "FROZEN"
        return f"{'live' if live else 'replay'}{' read-only' if read_only else ''}"
