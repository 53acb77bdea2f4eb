"""What the controller needs from storage, as a protocol: the lifecycle must not import the storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cortex_server.placement.records import Measurement, Pin


class PlacementStorage(Protocol):
    """Measurements, pins and cordons that outlive the gateway. Reads block; writes are queued."""

    def measurements(self) -> tuple[Measurement, ...]:
        """Return all measurements, the latest last; loads of the same key, build and node are one measurement."""
        ...

    def add_measurements(self, measurements: Iterable[Measurement]) -> None:
        """Add what loads took. A failure is logged."""
        ...

    def pins(self) -> tuple[Pin, ...]:
        """Return all pins, expired ones included."""
        ...

    def replace_pins(self, pins: Iterable[Pin]) -> None:
        """Replace all pins; `saved` waits for it."""
        ...

    def cordons(self) -> frozenset[str]:
        """Return the names of the nodes that are cordoned."""
        ...

    def replace_cordons(self, nodes: Iterable[str]) -> None:
        """Replace all cordons; `saved` waits for it."""
        ...

    async def saved(self) -> None:
        """Wait until the last change of pins or cordons is saved.

        Raises:
            Unavailable: it cannot be saved; the change is in force, but only until the gateway stops.
        """
        ...
