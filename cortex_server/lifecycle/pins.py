"""The models that operators protect from eviction, for a time or for good."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_common.schema.instances import ModelId
from cortex_server.placement.capacity import Pins
from cortex_server.placement.records import Pin


class PinStore:
    """The active pins.

    Args:
        pins: pins of earlier runs.
    """

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        self._pins = {(pin.model, pin.node): pin for pin in pins}
        self._active: Pins = frozenset(self._pins)

    @property
    def active(self) -> Pins:
        """The active pins as placement takes them; the same object until one changes."""
        return self._active

    def all(self) -> tuple[Pin, ...]:
        """Return the active pins."""
        return tuple(self._pins.values())

    def is_pinned(self, model: ModelId, node: str) -> bool:
        """Return whether the model is pinned on this node."""
        return bool(self._active) and (
            (model, node) in self._active or (model, None) in self._active
        )

    def add(self, pin: Pin) -> None:
        """Add a pin, or change when it expires."""
        self._pins[pin.model, pin.node] = pin
        self._active = frozenset(self._pins)

    def remove(self, model: ModelId, node: str | None) -> bool:
        """Remove a model's pins, on one node or all; return whether there was one."""
        keys = [key for key in self._pins if key[0] == model and node in {None, key[1]}]
        for key in keys:
            del self._pins[key]
        self._active = frozenset(self._pins)
        return bool(keys)

    def expire(self, now: float) -> bool:
        """Remove expired pins; return whether there were any. `now` is Unix seconds."""
        keys = [k for k, pin in self._pins.items() if pin.until is not None and pin.until <= now]
        for key in keys:
            del self._pins[key]
        if keys:
            self._active = frozenset(self._pins)
        return bool(keys)
