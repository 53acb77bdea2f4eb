"""What the controller needs from storage, as a protocol: the lifecycle must not import the storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cortex_common.schema.directives import Directive
from cortex_server.placement.records import Measurement


class PlacementStorage(Protocol):
    """Measurements and directives that outlive the gateway. Reads block; writes are queued."""

    def measurements(self) -> tuple[Measurement, ...]:
        """Return all measurements, the latest last; loads of the same key, build and node are one measurement."""
        ...

    def add_measurements(self, measurements: Iterable[Measurement]) -> None:
        """Add what loads took. A failure is logged."""
        ...

    def remove_measurements(self, model: str) -> None:
        """Remove all measurements of a model. A failure is logged."""
        ...

    def directives(self) -> tuple[tuple[str, Directive], ...]:
        """Return all directives, each with the name of its node, which is empty for the whole fleet."""
        ...

    def replace_directives(self, directives: Iterable[tuple[str, Directive]]) -> None:
        """Replace all directives; `saved` waits for it."""
        ...

    async def saved(self) -> None:
        """Wait until the last change of directives is saved.

        Raises:
            Unavailable: it cannot be saved; the change is in force, but only until the gateway stops.
        """
        ...
