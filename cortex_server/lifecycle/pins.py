"""Models that operators protect from eviction, for a time or for good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cortex_common.schema.instances import ModelId
from cortex_server.placement.capacity import Pins


@dataclass(frozen=True, slots=True)
class Pin:
    """A protected model.

    Attributes:
        node: only there; None anywhere.
        until: Unix seconds at which it ends; None never.
    """

    model: ModelId
    node: str | None
    until: float | None


class PinStore:
    """All pins that hold.

    Args:
        pins: of earlier runs.
    """

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        self._pins = {(pin.model, pin.node): pin for pin in pins}
        self._held: Pins = frozenset(self._pins)

    @property
    def held(self) -> Pins:
        """Those that hold, as placement takes them; the same object until one changes."""
        return self._held

    def all(self) -> tuple[Pin, ...]:
        """Those that hold."""
        return tuple(self._pins.values())

    def pins(self, model: ModelId, node: str) -> bool:
        """Whether the model is protected on this node."""
        return bool(self._held) and ((model, node) in self._held or (model, None) in self._held)

    def add(self, pin: Pin) -> None:
        """Protect a model, or change until when."""
        self._pins[pin.model, pin.node] = pin
        self._held = frozenset(self._pins)

    def remove(self, model: ModelId, node: str | None) -> bool:
        """End pins of a model, on one node or all of them; whether there was one."""
        found = [key for key in self._pins if key[0] == model and node in {None, key[1]}]
        for key in found:
            del self._pins[key]
        self._held = frozenset(self._pins)
        return bool(found)

    def expire(self, now: float) -> bool:
        """End those whose time has come; whether any did. `now` is Unix seconds."""
        found = [k for k, pin in self._pins.items() if pin.until is not None and pin.until <= now]
        for key in found:
            del self._pins[key]
        if found:
            self._held = frozenset(self._pins)
        return bool(found)
