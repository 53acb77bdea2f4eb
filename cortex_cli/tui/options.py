"""Options of the screen of `cortex top`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_cli.tui.theme import DARK

MAX_INTERVAL_S, MIN_INTERVAL_S = 10.0, 0.25
"""Bounds of the seconds between two drawings."""


@dataclass(frozen=True, slots=True)
class ScreenOptions:
    """Options that the command line sets.

    Attributes:
        source: name of the gateway or the recording, for the header.
        interval_s: seconds between two drawings.
        read_only: refuse operations on the fleet.
        ascii_only: draw with ASCII characters only.
        theme: name of the theme.
        live: whether the source is a gateway, as opposed to a recording.
        keys: keys that replace the default ones, by action; see `keys.validate_keymap`.
    """

    source: str
    interval_s: float = 1.0
    read_only: bool = False
    ascii_only: bool = False
    theme: str = DARK.name
    live: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        """Seconds between two snapshots of the source: as many as between two drawings."""
        return min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, self.interval_s))
