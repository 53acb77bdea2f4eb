"""The models that operators protect from eviction, for a time or for good."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_common.schema.instances import ModelId
from cortex_server.placement.overlay import Pins
from cortex_server.placement.records import Pin


class PinStore:
    """The pins in force.

    Args:
        pins: the first ones.
    """

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        self._pins = tuple(pins)
        self._active: Pins = frozenset((pin.model, pin.node) for pin in self._pins)

    @property
    def active(self) -> Pins:
        """The pins as placement takes them; the same object until one changes."""
        return self._active

    def all(self) -> tuple[Pin, ...]:
        """Return the pins in force."""
        return self._pins

    def is_pinned(self, model: ModelId, node: str) -> bool:
        """Return whether the model is pinned on this node."""
        return bool(self._active) and (
            (model, node) in self._active or (model, None) in self._active
        )

    def replace(self, pins: Iterable[Pin]) -> bool:
        """Replace all pins; return whether that changed anything."""
        replaced = tuple(pins)
        if replaced == self._pins:
            return False
        self._pins = replaced
        self._active = frozenset((pin.model, pin.node) for pin in replaced)
        return True
