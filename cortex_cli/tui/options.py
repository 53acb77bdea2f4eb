"""How the screen of `cortex top` is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_cli.tui.theme import DARK

SLOWEST_S, FASTEST_S = 10.0, 0.25
"""Bounds of the seconds between two drawings."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the screen is wanted.

    Attributes:
        where: what the header calls the source.
        interval_s: seconds between two drawings.
        live: whether the source is a gateway, and not a recording.
        keys: that the person wants instead of ours, by what they do; see `keys.remapped`.
    """

    where: str
    interval_s: float = 1.0
    read_only: bool = False
    ascii_only: bool = False
    theme: str = DARK.name
    live: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        """How often the fleet need be told: as often as it is drawn."""
        return min(SLOWEST_S, max(FASTEST_S, self.interval_s))
