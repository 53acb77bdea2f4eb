"""Decisions that no snapshot shows yet: pending loads, drains, removals and pins."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.schema.instances import InstanceId, ModelId

Pins = frozenset[tuple[ModelId, str | None]]
"""Pins set by operators: a model on one node, or on any node (None)."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that a decided load will take and that its node does not report yet.

    Attributes:
        instance: id of the instance to be loaded.
        model: the model it is loaded for.
        node: the node it is loaded on.
        devices: indices of its devices.
        device_mb: MiB on each device.
        evictions: instances that are evicted for it.
    """

    instance: InstanceId
    model: ModelId
    node: str
    devices: tuple[int, ...]
    device_mb: int
    evictions: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Overlay:
    """Decisions that no snapshot shows yet.

    Attributes:
        reservations: memory of pending loads.
        draining: instances that are being drained or unloaded. Their memory belongs to the reservation that they are
            evicted for; the rest is available to no one until they are gone.
        removed: instances that have been unloaded, even if an old snapshot still shows them.
        pins: pins set by operators.
    """

    reservations: tuple[Reservation, ...] = ()
    draining: frozenset[InstanceId] = frozenset()
    removed: frozenset[InstanceId] = frozenset()
    pins: Pins = frozenset()


EMPTY_OVERLAY = Overlay()
