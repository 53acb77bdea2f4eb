"""The room on each node as placement sees it: what the node said, plus what is decided and not yet visible there.

Building this for a node costs far more than asking it, so a `ClusterCapacity` keeps what it built for each `NodeView`
and builds again only for nodes that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from cortex_common.schema.fleet import DeviceView, FleetSnapshot, InstanceView, NodeState, NodeView
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId

Pins = frozenset[tuple[ModelId, str | None]]
"""Pins set by operators: a model on a node, or on any (None)."""

Reach = Mapping[DeviceKind, tuple[int, ...]]
"""MiB of the devices of each kind, the most first."""

Stairs = tuple[tuple[int, ...], tuple[float, ...]]
"""MiB freed by the first, the first two, ... of some instances, and the `last_used` of each, the oldest first."""

TAKING_MEMORY = frozenset(
    {
        InstanceState.LOADING,
        InstanceState.READY,
        InstanceState.DRAINING,
        InstanceState.STOPPING,
    }
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory that a decided load will take and its node does not show yet.

    Attributes:
        victims: instances that leave for it.
    """

    instance: InstanceId
    model: ModelId
    node: str
    devices: tuple[int, ...]
    device_mb: int
    candidates: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is decided and not yet visible in a snapshot.

    Attributes:
        promises: of loads under way.
        leaving: instances that are being drained or unloaded. Their memory belongs to the promise that they
            leave for; what is left of it is nobody's before they are gone.
        gone: instances that have left, whatever an old snapshot says.
        pins: set by operators.
    """

    reservations: tuple[Reservation, ...] = ()
    leaving: frozenset[InstanceId] = frozenset()
    gone: frozenset[InstanceId] = frozenset()
    pins: Pins = frozenset()


NOTHING = Overlay()


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """A device with what a new instance can be promised on it.

    Attributes:
        unfit: harnesses of the node whose engines do not run on it.
    """

    index: int
    kind: DeviceKind
    name: str
    total_mb: int
    available_mb: int
    capability: tuple[int, ...]
    health: DeviceHealth
    reason: str | None
    unfit: frozenset[str]


@dataclass(frozen=True)
class NodeCapacity:
    """A node with its room. What only an eviction needs to know is worked out when first asked for.

    Attributes:
        devices: by index.
        instances: those that take memory, pins applied, leaving ones draining, gone ones left out.
        models: of these instances.
        promised: loads that the node does not show yet.
    """

    node: NodeView
    devices: tuple[DeviceCapacity, ...]
    instances: tuple[InstanceView, ...]
    models: frozenset[ModelId]
    reservations: tuple[Reservation, ...]

    @cached_property
    def by_available(self) -> tuple[DeviceCapacity, ...]:
        """The devices, the least available memory first."""
        return tuple(sorted(self.devices, key=lambda d: (d.available_mb, d.index)))

    @cached_property
    def open_to(self) -> frozenset[str]:
        """Harnesses that an instance could be loaded with; none while the node is cordoned or does not answer."""
        node = self.node
        usable = node.state is NodeState.UP and not node.cordoned
        return frozenset(node.harnesses) if usable else frozenset()

    @cached_property
    def free(self) -> Reach:
        """What each device has available as things are."""
        return _reach(self.devices, ())

    @cached_property
    def idle_reach(self) -> Reach:
        """What each device could have with all evictable idle instances gone."""
        return _reach(self.devices, (i for i in self.instances if is_idle(i)))

    @cached_property
    def ready_reach(self) -> Reach:
        """The same with busy ones gone too."""
        ready = InstanceState.READY
        return _reach(
            self.devices, (i for i in self.instances if i.state is ready and not i.pinned)
        )

    @cached_property
    def stairs(self) -> Mapping[int, Stairs]:
        """Of each device, its evictable idle instances from the oldest on."""
        return _stairs(i for i in self.instances if is_idle(i))

    @cached_property
    def latest(self) -> dict[tuple[DeviceKind, int, int], float]:
        """What evictions by last use have found out about this room, by the room that was asked for."""
        return {}

    @cached_property
    def idle(self) -> frozenset[ModelId]:
        """Models with an evictable idle instance."""
        return frozenset(i.model for i in self.instances if is_idle(i))

    @cached_property
    def moving(self) -> frozenset[InstanceId]:
        """Instances whose memory comes free, or evictable, by itself."""
        return frozenset(i.id for i in self.instances if _is_moving(i))


class ClusterCapacity:
    """Remembers the room of each node for as long as the node and what is decided about it stay the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[NodeView, Overlay, NodeCapacity]] = {}

    def of(self, snapshot: FleetSnapshot, overlay: Overlay = NOTHING) -> tuple[NodeCapacity, ...]:
        """The room of every node, in the snapshot's order."""
        touched = _per_node(overlay)
        return tuple(self._room(node, touched, overlay) for node in snapshot.nodes)

    def _room(
        self, node: NodeView, touched: Mapping[str, Overlay], overlay: Overlay
    ) -> NodeCapacity:
        mine = touched.get(node.name, NOTHING)
        if overlay.leaving or overlay.gone or overlay.pins:
            mine = _narrowed(mine, node, overlay)
        known = self._known.get(node.name)
        if known is not None and known[0] is node and known[1] == mine:
            return known[2]
        capacity = node_capacity(node, mine)
        self._known[node.name] = (node, mine, capacity)
        return capacity


def _per_node(overlay: Overlay) -> dict[str, Overlay]:
    reservations: dict[str, list[Reservation]] = {}
    for reservation in overlay.reservations:
        reservations.setdefault(reservation.node, []).append(reservation)
    return {name: Overlay(reservations=tuple(found)) for name, found in reservations.items()}


def _narrowed(mine: Overlay, node: NodeView, overlay: Overlay) -> Overlay:
    """What of the fleet's overlay concerns one node."""
    ids = {i.id for i in node.instances}
    leaving, gone = overlay.leaving & ids, overlay.gone & ids
    pins = frozenset(pin for pin in overlay.pins if pin[1] is None or pin[1] == node.name)
    if leaving or gone or pins:
        return replace(mine, leaving=leaving, gone=gone, pins=pins)
    return mine


def node_capacity(node: NodeView, overlay: Overlay = NOTHING) -> NodeCapacity:
    """The room of one node; see `Overlay` for what is added to what the node said."""
    change = dict.fromkeys((d.index for d in node.devices), 0)
    visible = {i.id for i in node.instances}
    for instance in node.instances:
        if instance.id in overlay.gone:
            for index, freed in frees(instance).items():
                change[index] = change.get(index, 0) + freed
    unseen = [p for p in overlay.reservations if p.instance not in visible]
    for reservation in unseen:
        bequeathed = _bequeathed(reservation, node, overlay)
        for index in reservation.devices:
            more = min(0, bequeathed.get(index, 0) - reservation.device_mb)
            change[index] = change.get(index, 0) + more
    devices = tuple(_device_room(d, change[d.index], node) for d in node.devices)
    instances = tuple(
        _as_decided(i, overlay)
        for i in node.instances
        if i.state in TAKING_MEMORY and i.id not in overlay.gone
    )
    return NodeCapacity(
        node=node,
        devices=devices,
        instances=instances,
        models=frozenset(i.model for i in instances),
        reservations=tuple(unseen),
    )


def frees(instance: InstanceView) -> dict[int, int]:
    """MiB that each device gets back when an instance ends.

    A node that does not measure per device tells the sum only; it is then taken as shared evenly.
    """
    devices = instance.devices
    if len(instance.vram_by_device) == len(devices):
        return dict(zip(devices, instance.vram_by_device, strict=True))
    return dict.fromkeys(devices, instance.vram_used_mb // len(devices)) if devices else {}


def _bequeathed(reservation: Reservation, node: NodeView, overlay: Overlay) -> dict[int, int]:
    """MiB by device that a promise's victims hold still and will leave to it."""
    left: dict[int, int] = {}
    for instance in node.instances:
        going = instance.id in overlay.leaving and instance.id not in overlay.gone
        if going and instance.id in reservation.candidates:
            for index, mb in frees(instance).items():
                left[index] = left.get(index, 0) + mb
    return left


def is_idle(instance: InstanceView) -> bool:
    """Ready, not pinned, and nobody uses it."""
    return instance.state is InstanceState.READY and not instance.pinned and instance.in_flight == 0


def is_serving(capacity: NodeCapacity, instance: InstanceView) -> bool:
    """Whether requests can be sent to it."""
    return instance.state is InstanceState.READY and capacity.node.state is NodeState.UP


def _device_room(device: DeviceView, change_mb: int, node: NodeView) -> DeviceCapacity:
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
        unfit=frozenset(h for h, kinds in node.harness_kinds.items() if device.kind not in kinds),
    )


def _as_decided(instance: InstanceView, overlay: Overlay) -> InstanceView:
    pins = overlay.pins
    if pins and ((instance.model, instance.node) in pins or (instance.model, None) in pins):
        instance = replace(instance, pinned=True)
    if instance.id in overlay.leaving and instance.state is not InstanceState.DRAINING:
        instance = replace(instance, state=InstanceState.DRAINING)
    return instance


def _is_moving(instance: InstanceView) -> bool:
    if instance.state is InstanceState.LOADING:
        return not instance.pinned
    return instance.state in {InstanceState.DRAINING, InstanceState.STOPPING}


def _reach(devices: Iterable[DeviceCapacity], going: Iterable[InstanceView]) -> Reach:
    freed: dict[int, int] = {}
    for instance in going:
        for index, mb in frees(instance).items():
            freed[index] = freed.get(index, 0) + mb
    reach: dict[DeviceKind, list[int]] = {}
    for device in devices:
        if device.health is DeviceHealth.OK:
            mb = device.available_mb + freed.get(device.index, 0)
            reach.setdefault(device.kind, []).append(mb)
    return {kind: tuple(sorted(found, reverse=True)) for kind, found in reach.items()}


def _stairs(idle: Iterable[InstanceView]) -> dict[int, Stairs]:
    steps: dict[int, tuple[list[int], list[float]]] = {}
    for instance in sorted(idle, key=lambda i: i.last_used):
        for index, mb in frees(instance).items():
            freed, used = steps.setdefault(index, ([], []))
            freed.append(mb + (freed[-1] if freed else 0))
            used.append(instance.last_used)
    return {index: (tuple(freed), tuple(used)) for index, (freed, used) in steps.items()}
