"""The capacity of each node as placement sees it: what the node reported, and decisions that it does not report yet.

Building a `NodeCapacity` costs far more than querying it, so a `CapacityCache` rebuilds only those whose `NodeView` or
pending decisions have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from cortex_common.schema.fleet import DeviceView, FleetSnapshot, InstanceView, NodeState, NodeView
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.overlay import EMPTY_OVERLAY, Overlay, Reservation

AvailableByKind = Mapping[DeviceKind, tuple[int, ...]]
"""Available MiB of the devices of each kind, largest first."""

CumulativeFreed = tuple[tuple[int, ...], tuple[float, ...]]
"""MiB freed by the first, the first two, ... of a list of instances, and the `last_used` of each, least recently used
first."""

MEMORY_HOLDING_STATES = frozenset(
    {
        InstanceState.LOADING,
        InstanceState.READY,
        InstanceState.DRAINING,
        InstanceState.STOPPING,
    }
)
"""Instance states in which an instance holds device memory."""


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """A device and the memory that a new instance can reserve on it.

    Attributes:
        index: index on its node.
        kind: CUDA, CPU, ...
        name: product name; devices of the same name are interchangeable.
        total_mb: MiB in total.
        available_mb: MiB that can be reserved.
        capability: CUDA compute capability, such as (8, 9); empty where there is none.
        health: whether it can be used.
        reason: why it can't be used.
        unsupported_harnesses: harnesses of the node whose engines do not run on this device.
        node: name of its node.
        uuid: the driver's identifier.
        empty_mb: MiB that could be reserved if no instance were on it.
        headroom_mb: MiB that its node keeps free on it.
        unified: it shares its memory with the node's other unified devices.
        links: how it is connected to other GPUs, by UUID.
        labels: its labels from neuron.toml.
        cordoned: neuron.toml excludes it from new instances.
    """

    index: int
    kind: DeviceKind
    name: str
    total_mb: int
    available_mb: int
    capability: tuple[int, ...]
    health: DeviceHealth
    reason: str | None
    unsupported_harnesses: frozenset[str]
    node: str
    uuid: str
    empty_mb: int
    headroom_mb: int
    unified: bool
    links: Mapping[str, str]
    labels: Mapping[str, str]
    cordoned: bool

    @property
    def can_be_combined(self) -> bool:
        """Whether one instance can use it together with others: a process can use one MIG device only."""
        return not self.unified and not self.uuid.startswith("MIG-")


@dataclass(frozen=True)
class NodeCapacity:
    """A node with its capacity. What only evictions need is computed on first use.

    Attributes:
        node: the node as reported.
        devices: its devices, by index.
        instances: the instances that hold memory: pins applied, draining ones marked, removed ones left out.
        models: the models of these instances.
        reservations: loads that the node does not report yet.
    """

    node: NodeView
    devices: tuple[DeviceCapacity, ...]
    instances: tuple[InstanceView, ...]
    models: frozenset[ModelId]
    reservations: tuple[Reservation, ...]

    @cached_property
    def pool(self) -> frozenset[int]:
        """Indices of the devices that share one memory: a unified GPU and the host's RAM."""
        return memory_pool(self.node)

    def memory_of(self, instance: InstanceView) -> Mapping[int, int]:
        """Return the MiB that unloading an instance would free, by device; in a pool, on all of its devices."""
        return _spread_over_pool(memory_by_device(instance), self.pool)

    @cached_property
    def headroom_mb(self) -> int:
        """The largest headroom of a device, by which a measured size can exceed what is available."""
        return max((d.headroom_mb for d in self.devices), default=0)

    @cached_property
    def devices_by_available(self) -> tuple[DeviceCapacity, ...]:
        """Devices, least available memory first."""
        return tuple(sorted(self.devices, key=lambda d: (d.available_mb, d.index)))

    @cached_property
    def usable_harnesses(self) -> frozenset[str]:
        """Harnesses that can load an instance; none while the node is cordoned or unreachable."""
        node = self.node
        usable = node.state is NodeState.UP and not node.cordoned
        return frozenset(node.harnesses) if usable else frozenset()

    @cached_property
    def available(self) -> AvailableByKind:
        """Available MiB of each device as things are."""
        return self._available_without(())

    @cached_property
    def available_without_idle(self) -> AvailableByKind:
        """Available MiB of each device if all evictable idle instances were gone."""
        return self._available_without(i for i in self.instances if is_idle(i))

    @cached_property
    def available_without_ready(self) -> AvailableByKind:
        """Available MiB of each device if all unpinned ready instances were gone, busy ones included."""
        ready = InstanceState.READY
        return self._available_without(
            i for i in self.instances if i.state is ready and not i.pinned
        )

    def _available_without(self, evicted: Iterable[InstanceView]) -> AvailableByKind:
        return _available_by_kind(self.devices, map(self.memory_of, evicted))

    @cached_property
    def idle_by_age(self) -> Mapping[int, CumulativeFreed]:
        """Evictable idle instances of each device, least recently used first."""
        idle = sorted((i for i in self.instances if is_idle(i)), key=lambda i: i.last_used)
        return _cumulative_freed((i.last_used, self.memory_of(i)) for i in idle)

    @cached_property
    def last_use_bounds(self) -> dict[tuple[DeviceKind, int, int], float]:
        """Cache of `eviction_candidates._last_use_bound`, by device kind, number of devices and MiB per device."""
        return {}

    @cached_property
    def idle_models(self) -> frozenset[ModelId]:
        """Models with an evictable idle instance."""
        return frozenset(i.model for i in self.instances if is_idle(i))

    @cached_property
    def in_transition(self) -> frozenset[InstanceId]:
        """Instances whose memory becomes free or evictable without a further decision."""
        return frozenset(i.id for i in self.instances if _is_in_transition(i))


class CapacityCache:
    """Caches the capacity of each node until its `NodeView` or the decisions about it change."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[NodeView, Overlay, NodeCapacity]] = {}

    def capacities(
        self, snapshot: FleetSnapshot, overlay: Overlay = EMPTY_OVERLAY
    ) -> tuple[NodeCapacity, ...]:
        """Return the capacity of every node, in the snapshot's order."""
        overlays = _reservations_by_node(overlay)
        return tuple(self._capacity(node, overlays, overlay) for node in snapshot.nodes)

    def _capacity(
        self, node: NodeView, overlays: Mapping[str, Overlay], overlay: Overlay
    ) -> NodeCapacity:
        node_overlay = overlays.get(node.name, EMPTY_OVERLAY)
        if overlay.draining or overlay.removed or overlay.pins:
            node_overlay = _restrict_to_node(node_overlay, node, overlay)
        entry = self._entries.get(node.name)
        if entry is not None and entry[0] is node and entry[1] == node_overlay:
            return entry[2]
        capacity = node_capacity(node, node_overlay)
        self._entries[node.name] = (node, node_overlay, capacity)
        return capacity


def _reservations_by_node(overlay: Overlay) -> dict[str, Overlay]:
    reservations: dict[str, list[Reservation]] = {}
    for reservation in overlay.reservations:
        reservations.setdefault(reservation.node, []).append(reservation)
    return {
        name: Overlay(reservations=tuple(reservations_of_node))
        for name, reservations_of_node in reservations.items()
    }


def _restrict_to_node(own: Overlay, node: NodeView, overlay: Overlay) -> Overlay:
    """Extend a node's own overlay by the parts of the fleet's overlay that concern the node."""
    ids = {i.id for i in node.instances}
    draining, removed = overlay.draining & ids, overlay.removed & ids
    pins = frozenset(pin for pin in overlay.pins if pin[1] is None or pin[1] == node.name)
    if draining or removed or pins:
        return replace(own, draining=draining, removed=removed, pins=pins)
    return own


def node_capacity(node: NodeView, overlay: Overlay = EMPTY_OVERLAY) -> NodeCapacity:
    """Build the capacity of one node from its report and the overlay."""
    change_mb = dict.fromkeys((d.index for d in node.devices), 0)
    pool = memory_pool(node)
    reported = {i.id for i in node.instances}
    for instance in node.instances:
        if instance.id in overlay.removed:
            for index, mb in _spread_over_pool(memory_by_device(instance), pool).items():
                change_mb[index] = change_mb.get(index, 0) + mb
    unreported = [p for p in overlay.reservations if p.instance not in reported]
    for reservation in unreported:
        from_evictions = _memory_from_evictions(reservation, node, overlay)
        needed = dict.fromkeys(reservation.devices, reservation.device_mb)
        for index, mb in _spread_over_pool(needed, pool).items():
            taken = min(0, from_evictions.get(index, 0) - mb)
            change_mb[index] = change_mb.get(index, 0) + taken
    held: dict[int, int] = {}
    for instance in node.instances:
        if instance.state in MEMORY_HOLDING_STATES:
            for index, mb in _spread_over_pool(memory_by_device(instance), pool).items():
                held[index] = held.get(index, 0) + mb
    devices = tuple(
        _device_capacity(d, change_mb[d.index], held.get(d.index, 0), node) for d in node.devices
    )
    instances = tuple(
        _apply_overlay(i, overlay)
        for i in node.instances
        if i.state in MEMORY_HOLDING_STATES and i.id not in overlay.removed
    )
    return NodeCapacity(
        node=node,
        devices=devices,
        instances=instances,
        models=frozenset(i.model for i in instances),
        reservations=tuple(unreported),
    )


def memory_pool(node: NodeView) -> frozenset[int]:
    """Return the indices of a node's devices that share the host's memory; empty if fewer than two do."""
    unified = frozenset(d.index for d in node.devices if d.unified)
    return unified if len(unified) > 1 else frozenset()


def _spread_over_pool(by_device: Mapping[int, int], pool: frozenset[int]) -> Mapping[int, int]:
    """Return the MiB by device, where memory of one device of the pool is memory of all of them."""
    if pool.isdisjoint(by_device):
        return by_device
    pooled = sum(mb for index, mb in by_device.items() if index in pool)
    return {**by_device, **dict.fromkeys(pool, pooled)}


def memory_by_device(instance: InstanceView) -> dict[int, int]:
    """Return the MiB that an instance holds on each of its devices.

    A node that does not measure per device reports only the sum; it is split evenly.
    """
    devices = instance.devices
    if len(instance.vram_by_device) == len(devices):
        return dict(zip(devices, instance.vram_by_device, strict=True))
    return dict.fromkeys(devices, instance.vram_used_mb // len(devices)) if devices else {}


def _memory_from_evictions(
    reservation: Reservation, node: NodeView, overlay: Overlay
) -> dict[int, int]:
    """Return the MiB by device that the evictions for a reservation still hold and will leave to it."""
    held: dict[int, int] = {}
    for instance in node.instances:
        draining = instance.id in overlay.draining and instance.id not in overlay.removed
        if draining and instance.id in reservation.evictions:
            memory = _spread_over_pool(memory_by_device(instance), memory_pool(node))
            for index, mb in memory.items():
                held[index] = held.get(index, 0) + mb
    return held


def is_idle(instance: InstanceView) -> bool:
    """Return whether an instance is ready, not pinned, and has no request in flight."""
    return instance.state is InstanceState.READY and not instance.pinned and instance.in_flight == 0


def is_serving(capacity: NodeCapacity, instance: InstanceView) -> bool:
    """Return whether requests can be sent to an instance."""
    is_up = capacity.node.state is NodeState.UP
    return instance.state is InstanceState.READY and instance.routable and is_up


def _device_capacity(
    device: DeviceView, change_mb: int, held_mb: int, node: NodeView
) -> DeviceCapacity:
    capability = device.compute_capability
    return DeviceCapacity(
        index=device.index,
        kind=device.kind,
        name=device.name,
        total_mb=device.vram_total_mb,
        available_mb=max(0, device.vram_available_mb + change_mb),
        capability=tuple(int(p) for p in capability.split(".")) if capability else (),
        health=device.health,
        reason=device.reason,
        unsupported_harnesses=frozenset(
            h for h, kinds in node.harness_kinds.items() if device.kind not in kinds
        ),
        node=node.name,
        uuid=device.uuid,
        empty_mb=device.vram_available_mb + held_mb,
        headroom_mb=device.vram_headroom_mb,
        unified=device.unified,
        links=device.links,
        labels=device.labels,
        cordoned=device.cordoned,
    )


def _apply_overlay(instance: InstanceView, overlay: Overlay) -> InstanceView:
    pins = overlay.pins
    if pins and ((instance.model, instance.node) in pins or (instance.model, None) in pins):
        instance = replace(instance, pinned=True)
    if instance.id in overlay.draining and instance.state is not InstanceState.DRAINING:
        instance = replace(instance, state=InstanceState.DRAINING)
    return instance


def _is_in_transition(instance: InstanceView) -> bool:
    if instance.state is InstanceState.LOADING:
        return not instance.pinned
    return instance.state in {InstanceState.DRAINING, InstanceState.STOPPING}


def _available_by_kind(
    devices: Iterable[DeviceCapacity], evicted: Iterable[Mapping[int, int]]
) -> AvailableByKind:
    freed: dict[int, int] = {}
    for memory in evicted:
        for index, mb in memory.items():
            freed[index] = freed.get(index, 0) + mb
    available: dict[DeviceKind, list[int]] = {}
    for device in devices:
        if device.health is DeviceHealth.OK:
            mb = device.available_mb + freed.get(device.index, 0)
            available.setdefault(device.kind, []).append(mb)
    return {kind: tuple(sorted(amounts, reverse=True)) for kind, amounts in available.items()}


def _cumulative_freed(
    idle: Iterable[tuple[float, Mapping[int, int]]],
) -> dict[int, CumulativeFreed]:
    by_device: dict[int, tuple[list[int], list[float]]] = {}
    for used, memory in idle:
        for index, mb in memory.items():
            freed, last_used = by_device.setdefault(index, ([], []))
            freed.append(mb + (freed[-1] if freed else 0))
            last_used.append(used)
    return {
        index: (tuple(freed), tuple(last_used)) for index, (freed, last_used) in by_device.items()
    }
