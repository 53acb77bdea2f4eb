"""State of the screen: the snapshots received, the choices of the person, and whether the gateway is reachable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.history import History
from cortex_cli.tui.view import Choice
from cortex_cli.watch import ConnectionLost
from cortex_common.schema.fleet import FleetSnapshot

LOST = "LOST"
"""Mode of a screen that has lost its gateway."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one drawing of the screen depends on.

    Attributes:
        ghosts: memory that a planned operation would take.
        lost: why the gateway is unreachable; None while it is reachable.
        source: name of the gateway or the recording.
        mode: "live", "FROZEN", "LOST" or "replay", followed by "read-only" where that applies.
    """

    snapshot: FleetSnapshot | None
    history: History
    choice: Choice
    ghosts: Sequence[Ghost]
    lost: ConnectionLost | None
    source: str
    mode: str


class ViewState:
    """Updated by the source's events and by keys.

    Args:
        source: name of the gateway or the recording.
        live: whether the source is a gateway.
        read_only: whether the screen refuses operations.

    Attributes:
        latest: the most recent snapshot.
        history: samples of rates and utilization.
        lost: why the gateway is unreachable; None while it is reachable.
        choice: filter, sort order and marks.
        ghosts: memory that a planned operation would take.
    """

    def __init__(self, source: str, *, live: bool, read_only: bool) -> None:
        self._source = source
        self._live = live
        self._read_only = read_only
        self.latest: FleetSnapshot | None = None
        self.history = History()
        self.lost: ConnectionLost | None = None
        self.choice = Choice()
        self.ghosts: Sequence[Ghost] = ()
        self._frozen: FleetSnapshot | None = None

    @property
    def snapshot(self) -> FleetSnapshot | None:
        """The snapshot to show: the frozen one, or the latest."""
        return self._frozen or self.latest

    @property
    def blocked(self) -> str | None:
        """Why operations on the fleet are impossible; None when they are possible."""
        if self._read_only:
            return "the screen is read-only"
        if self.lost is not None:
            return "the gateway is unreachable"
        return None

    @property
    def frame(self) -> Frame:
        """The current values, for one drawing."""
        return Frame(
            snapshot=self.snapshot,
            history=self.history,
            choice=self.choice,
            ghosts=self.ghosts,
            lost=self.lost,
            source=self._source,
            mode=self._mode,
        )

    def update(self, snapshot: FleetSnapshot) -> bool:
        """Record a snapshot; return whether to draw immediately, because it is the first or ends a lost connection."""
        urgent = self.lost is not None or self.latest is None
        self.lost = None
        self.history = self.history.after(snapshot)
        self.latest = snapshot
        return urgent

    def toggle_freeze(self) -> None:
        """Freeze the snapshot on the screen, or return to the latest."""
        self._frozen = None if self._frozen else self.latest

    def toggle_mark(self, model: str) -> None:
        """Mark a model for the next operation, or remove its mark."""
        self.choice = replace(self.choice, marked=self.choice.marked ^ {model})

    @property
    def _mode(self) -> str:
        if self.lost is not None:
            return LOST
        if self._frozen is not None:
            return "FROZEN"
        return f"{'live' if self._live else 'replay'}{' read-only' if self._read_only else ''}"
