"""Which devices of a node can hold a model: sizes, requirements, and sets of devices with enough memory.

All sizes are MiB per device: an instance over n devices needs its share on each of them. They are learned by type of
device, because an engine that sizes itself takes more on a larger one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations, islice

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import NodeState, NodeView
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_server.placement.capacity import DeviceCapacity, NodeCapacity
from cortex_server.placement.policy import Prefer
from cortex_server.placement.topology import best_connected

MAX_DEVICE_SETS = 256
"""Device sets compared for one instance on one node; enough for every set out of 8 devices (at most 70)."""


class SizeSource(StrEnum):
    """Where the size of a model comes from, most reliable first."""

    MEASURED = "measured"
    NODE = "node"
    CONFIGURED = "configured"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SizeKey:
    """Everything that the memory of an instance depends on.

    Attributes:
        model: the model's id.
        weights: source and file of the weights, and the engine's extra arguments.
        quant: quantization.
        context: configured context length in tokens.
        parallel: configured parallel requests.
        vram_mb: configured memory, which some engines use in full.
        harness: name of the harness.
        kind: kind of its devices.
        devices: number of its devices.
    """

    model: str
    weights: str
    quant: str | None
    context: int | None
    parallel: int | None
    vram_mb: int | None
    harness: str
    kind: DeviceKind
    devices: int


@dataclass(frozen=True, slots=True)
class Size:
    """MiB that an instance takes on each of its devices.

    Attributes:
        device_mb: 0 while unknown; the node then estimates from the weights and reports the estimate when it refuses.
        source: where the number comes from.
    """

    device_mb: int
    source: SizeSource


Sizes = Mapping[SizeKey, Mapping[str, Size]]
"""Sizes by card, measured by loads or reported by a node that refused one."""

Floors = Mapping[tuple[str, int, int], int]
"""MiB that a model needs at least, by node, index of the device, and number of devices: more than was available when
its engine ran out of memory there."""

NO_FLOORS: Floors = {}


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to lay out a model: the number and kind of its devices, and the MiB on each.

    Attributes:
        kind: kind of the devices.
        devices: number of devices.
        size: the size on cards that have none of their own.
        by_card: sizes by card, where they are known.
        floors: see `Floors`.
    """

    kind: DeviceKind
    devices: int
    size: Size
    by_card: Mapping[str, Size] = field(default_factory=dict)
    floors: Floors = field(default_factory=dict)

    @property
    def least_mb(self) -> int:
        """The least MiB that any device could need."""
        return min(s.device_mb for s in (self.size, *self.by_card.values()))

    def needed_mb(self, device: DeviceCapacity) -> int:
        """Return the MiB that an instance needs on a device.

        A measured size can include headroom, because the engine used it; an empty device then suffices.
        """
        size = self.by_card.get(device.name, self.size)
        needed = size.device_mb
        if size.source is SizeSource.MEASURED:
            beyond_mb = needed - device.empty_mb
            if 0 < beyond_mb <= device.headroom_mb:
                needed = device.empty_mb
        return max(needed, self.floors.get((device.node, device.index, self.devices), 0))

    def source_on(self, device: DeviceCapacity) -> str:
        """Return where the size on a device comes from, as text for people."""
        size = self.by_card.get(device.name, self.size)
        if self.needed_mb(device) > size.device_mb:
            return "its engine ran out of memory there with less"
        return size.source.value

    def on(self, devices: Sequence[DeviceCapacity]) -> Shape:
        """Return the shape as decided for some devices, with the largest size among them."""
        sizes = (self.by_card.get(d.name, self.size) for d in devices)
        size = max(sizes, key=lambda s: s.device_mb)
        return Shape(self.kind, self.devices, size)


def size_key(model_config: ModelConfig, kind: DeviceKind, devices: int) -> SizeKey:
    """Return the key under which the size of an instance of this model config is recorded."""
    return SizeKey(
        model_config.id,
        " ".join(
            (model_config.source or model_config.id, model_config.file or "-", *model_config.args)
        ),
        model_config.quant,
        model_config.context,
        model_config.parallel,
        model_config.vram_mb,
        model_config.harness,
        kind,
        devices,
    )


def _shape(
    model_config: ModelConfig, kind: DeviceKind, devices: int, sizes: Sizes, floors: Floors
) -> Shape:
    """Return the shape with the most reliable sizes: measured, reported by a node, configured, or unknown."""
    by_card = sizes.get(size_key(model_config, kind, devices), {})
    configured = None
    if model_config.vram_mb is not None:
        configured = Size(-(-model_config.vram_mb // devices), SizeSource.CONFIGURED)
        if kind is DeviceKind.CPU:  # resident memory grows with use
            by_card = {c: max(s, configured, key=lambda x: x.device_mb) for c, s in by_card.items()}
    measured = [s for s in by_card.values() if s.source is SizeSource.MEASURED]
    size = configured or Size(0, SizeSource.UNKNOWN)
    if measured:  # the best guess for other cards
        size = max(measured, key=lambda s: s.device_mb)
    own_floors = {place: mb for place, mb in floors.items() if place[2] == devices}
    return Shape(kind, devices, size, by_card, own_floors)


def possible_shapes(
    model_config: ModelConfig, sizes: Sizes, floors: Floors = NO_FLOORS
) -> tuple[Shape, ...]:
    """Return all ways to lay out a model in order of preference: GPUs first, fewer devices first."""
    all_kinds = (DeviceKind.CUDA, DeviceKind.CPU)
    kinds = all_kinds if model_config.device_kind is None else (model_config.device_kind,)
    max_devices = model_config.max_devices or model_config.min_devices
    counts = [model_config.min_devices]
    while counts[-1] * 2 <= max_devices:
        counts.append(counts[-1] * 2)
    return tuple(
        _shape(model_config, kind, count, sizes, floors) for kind in kinds for count in counts
    )


@dataclass(frozen=True, slots=True)
class PlacementConstraints:
    """Where an instance must be placed; set by operators, never by client requests.

    Attributes:
        node: the node; None for any.
        devices: the devices of that node; empty for any.
        kind: the kind of device; None for any.
    """

    node: str | None = None
    devices: tuple[int, ...] = ()
    kind: DeviceKind | None = None


ANYWHERE = PlacementConstraints()


def node_refusal(
    model_config: ModelConfig,
    node: NodeView,
    constraints: PlacementConstraints = ANYWHERE,
    labels: Mapping[str, str] | None = None,
) -> str | None:
    """Return why no device of a node is considered at all, as text for people; None when they are."""
    reason: str | None = None
    if constraints.node is not None and node.name != constraints.node:
        reason = f"the request names node {constraints.node}"
    elif refusal := model_config.node_refusal(node.name, labels or {}):
        reason = refusal
    elif node.state is not NodeState.UP:
        reason = node.reason or f"the node is {node.state}"
    elif node.cordoned:
        reason = "the node is cordoned"
    elif model_config.harness not in node.harnesses:
        reason = f"the node has no harness {model_config.harness!r}"
    return reason


def device_refusal(
    model_config: ModelConfig, device: DeviceCapacity, constraints: PlacementConstraints
) -> str | None:
    """Return why a device can't hold the model even when empty, as text for people; None when it can."""
    if device.health is not DeviceHealth.OK:
        return device.reason or f"the device is {device.health}"
    return _excluded(model_config, device, constraints) or _unsuitable(model_config, device)


def _excluded(
    model_config: ModelConfig, device: DeviceCapacity, constraints: PlacementConstraints
) -> str | None:
    """Return why a request or the configuration excludes a device."""
    reason: str | None = None
    kind = constraints.kind or model_config.device_kind
    if constraints.devices and device.index not in constraints.devices:
        reason = "not among the requested devices"
    elif kind is not None and device.kind is not kind:
        reason = f"a {device.kind} device, not {kind}"
    elif device.cordoned:
        reason = "the device is cordoned in neuron.toml"
    elif model_config.gpus and not _is_named(device, model_config.gpus):
        reason = "not among the gpus of its model config"
    elif missing := [
        f"{k}={v}" for k, v in model_config.gpu_labels.items() if device.labels.get(k) != v
    ]:
        reason = f"the device has no label {missing[0]}"
    return reason


def _unsuitable(model_config: ModelConfig, device: DeviceCapacity) -> str | None:
    """Return why the engine, or the model, can't use a device."""
    min_capability = model_config.min_compute_capability
    if model_config.harness in device.unsupported_harnesses:
        return f"engines of harness {model_config.harness!r} do not run on a {device.kind} device"
    if device.total_mb < model_config.min_device_vram_mb:
        required = model_config.min_device_vram_mb
        return f"has {device.total_mb} MiB in total; the model requires {required}"
    if (
        min_capability
        and device.kind is DeviceKind.CUDA
        and device.capability < parse_version(min_capability)
    ):
        capability = ".".join(map(str, device.capability))
        return f"compute capability {capability} is below {min_capability}"
    return None


def _is_named(device: DeviceCapacity, names: Sequence[str]) -> bool:
    """Return whether a device is among some names: its UUID, or its node and its UUID or index."""
    own = {device.uuid, f"{device.node}/{device.uuid}", f"{device.node}/{device.index}"}
    return not own.isdisjoint(names)


def parse_version(text: str | None) -> tuple[int, ...]:
    """Return a version as comparable numbers: (8, 9) for "8.9". None gives (), which sorts before every version."""
    return tuple(int(part) for part in text.split(".")) if text else ()


def eligible_devices(
    model_config: ModelConfig,
    capacity: NodeCapacity,
    shape: Shape,
    constraints: PlacementConstraints = ANYWHERE,
) -> tuple[DeviceCapacity, ...]:
    """Return the devices of a node that the shape could be placed on, least available memory first."""
    return tuple(
        d
        for d in capacity.devices_by_available
        if d.kind is shape.kind
        and (shape.devices == 1 or d.can_be_combined)
        and device_refusal(model_config, d, constraints) is None
    )


def device_sets(
    devices: tuple[DeviceCapacity, ...], count: int, *, mixed: bool
) -> Iterator[tuple[DeviceCapacity, ...]]:
    """Yield sets of `count` devices of one type (of any types when `mixed`), at most `MAX_DEVICE_SETS`."""
    if count == 1:
        for device in devices:
            yield (device,)
        return
    groups: dict[str, list[DeviceCapacity]] = {}
    for device in devices:
        groups.setdefault("" if mixed else device.name, []).append(device)
    sets = (s for group in groups.values() for s in combinations(group, count))
    yield from islice(sets, MAX_DEVICE_SETS)


def find_free_devices(
    model_config: ModelConfig,
    capacity: NodeCapacity,
    shape: Shape,
    constraints: PlacementConstraints,
    prefer: Prefer,
) -> tuple[DeviceCapacity, ...] | None:
    """Find the set of devices with enough available memory for a shape that `prefer` ranks best.

    Args:
        model_config: the model's config.
        capacity: the node's capacity.
        shape: the layout to be placed.
        constraints: where it must be placed.
        prefer: "pack" takes the least memory that suffices, "spread" the most. A model of unknown size is always
            spread:
            its load is most likely to succeed where the most memory is free.
    """
    kind = shape.kind
    spread = prefer is Prefer.SPREAD or shape.size.source is SizeSource.UNKNOWN
    groups: dict[str, list[DeviceCapacity]] = {}
    for device in (
        reversed(capacity.devices_by_available) if spread else capacity.devices_by_available
    ):
        if device.kind is not kind or device.available_mb < shape.needed_mb(device):
            continue
        if device_refusal(model_config, device, constraints) is not None:
            continue
        if shape.devices == 1:
            return (device,)
        if device.can_be_combined:
            groups.setdefault("" if model_config.mixed_devices else device.name, []).append(device)
    sufficient = [group for group in groups.values() if len(group) >= shape.devices]
    if not sufficient:
        return None
    group = min(sufficient, key=lambda g: _total_mb(g, shape.devices, spread=spread))
    return tuple(sorted(best_connected(group, shape.devices), key=lambda d: d.index))


def _total_mb(group: Sequence[DeviceCapacity], count: int, *, spread: bool) -> int:
    total = sum(d.available_mb for d in group[:count])
    return -total if spread else total
