"""Which devices of a node can hold a model: sizes, requirements, and sets of devices with room.

All sizes are MiB on one device: an instance over n devices needs its share on each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, islice

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import NodeState, NodeView
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_server.placement.capacity import DeviceCapacity, NodeCapacity
from cortex_server.placement.policy import Prefer

MOST_SETS = 256
"""Sets of devices that are compared for one instance on one node: all of 8 devices (at most 70)."""


class SizeSource(StrEnum):
    """Where the size of a model comes from, best first."""

    MEASURED = "measured"
    NODE = "node"
    CONFIGURED = "configured"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SizeKey:
    """What the memory of an instance depends on.

    Attributes:
        weights: source and file, with what the engine is told besides.
    """

    model: str
    weights: str
    quant: str | None
    context: int | None
    parallel: int | None
    harness: str
    kind: DeviceKind
    devices: int


@dataclass(frozen=True, slots=True)
class Size:
    """MiB that an instance takes on each of its devices.

    Attributes:
        device_mb: 0 when nobody knows yet; the node then estimates from the weights, and says so when it refuses.
    """

    device_mb: int
    source: SizeSource


Sizes = Mapping[SizeKey, Size]
"""What was measured by loads, or said by a node that refused one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to lay a model out: over how many devices of which kind, with how much on each."""

    kind: DeviceKind
    devices: int
    size: Size


def size_key(model_config: ModelConfig, kind: DeviceKind, devices: int) -> SizeKey:
    """The key under which a load of this profile is remembered."""
    return SizeKey(
        model_config.id,
        " ".join(
            (model_config.source or model_config.id, model_config.file or "-", *model_config.args)
        ),
        model_config.quant,
        model_config.context,
        model_config.parallel,
        model_config.harness,
        kind,
        devices,
    )


def size_of(model_config: ModelConfig, kind: DeviceKind, devices: int, sizes: Sizes) -> Size:
    """The best knowledge about the size: measured, said by a node, configured, or none."""
    if (known := sizes.get(size_key(model_config, kind, devices))) is not None:
        return known
    if model_config.vram_mb is not None:
        return Size(-(-model_config.vram_mb // devices), SizeSource.CONFIGURED)
    return Size(0, SizeSource.UNKNOWN)


def shapes(model_config: ModelConfig, sizes: Sizes) -> tuple[Shape, ...]:
    """All ways to lay the model out, in order of preference: GPUs first, few devices first."""
    either = (DeviceKind.CUDA, DeviceKind.CPU)
    kinds = either if model_config.device_kind is None else (model_config.device_kind,)
    most = model_config.max_devices or model_config.min_devices
    counts = [model_config.min_devices]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return tuple(
        Shape(kind, count, size_of(model_config, kind, count, sizes))
        for kind in kinds
        for count in counts
    )


@dataclass(frozen=True, slots=True)
class PlacementConstraints:
    """Where an operator wants it; a request wants it anywhere."""

    node: str | None = None
    devices: tuple[int, ...] = ()


ANYWHERE = PlacementConstraints()


def node_refusal(
    model_config: ModelConfig,
    node: NodeView,
    where: PlacementConstraints = ANYWHERE,
    labels: Mapping[str, str] | None = None,
) -> str | None:
    """Why no device of this node is considered at all, for people; None when they are."""
    reason: str | None = None
    if where.node is not None and node.name != where.node:
        reason = f"not {where.node}"
    elif model_config.nodes and node.name not in model_config.nodes:
        reason = "not among the nodes of its profile"
    elif node.state is not NodeState.UP:
        reason = node.reason or f"the node is {node.state}"
    elif node.cordoned:
        reason = "the node is cordoned"
    elif model_config.harness not in node.harnesses:
        reason = f"the node has no harness {model_config.harness!r}"
    elif model_config.labels:
        have = labels or {}
        lacking = [f"{k}={v}" for k, v in model_config.labels.items() if have.get(k) != v]
        reason = f"the node has no label {lacking[0]}" if lacking else None
    return reason


def device_refusal(
    model_config: ModelConfig, device: DeviceCapacity, where: PlacementConstraints
) -> str | None:
    """Why this device can't hold the model however empty it is; None when it can."""
    reason: str | None = None
    least = model_config.min_compute_capability
    if where.devices and device.index not in where.devices:
        reason = "not among the devices asked for"
    elif device.health is not DeviceHealth.OK:
        reason = device.reason or f"the device is {device.health}"
    elif model_config.device_kind is not None and device.kind is not model_config.device_kind:
        reason = f"a {device.kind} device, not {model_config.device_kind}"
    elif model_config.harness in device.unfit:
        reason = f"engines of harness {model_config.harness!r} do not run on a {device.kind} device"
    elif device.total_mb < model_config.min_device_vram_mb:
        reason = (
            f"has {device.total_mb} MiB in all, needs a device of {model_config.min_device_vram_mb}"
        )
    elif least and device.kind is DeviceKind.CUDA and device.capability < version(least):
        reason = f"compute capability {'.'.join(map(str, device.capability))} is below {least}"
    return reason


def version(text: str | None) -> tuple[int, ...]:
    """Numbers that compare: (8, 9) for "8.9"; nothing as (), which is below everything."""
    return tuple(int(part) for part in text.split(".")) if text else ()


def suitable(
    model_config: ModelConfig,
    capacity: NodeCapacity,
    shape: Shape,
    where: PlacementConstraints = ANYWHERE,
) -> tuple[DeviceCapacity, ...]:
    """Devices of a node that this shape could stand on, by available memory, least first."""
    return tuple(
        d
        for d in capacity.by_available
        if d.kind is shape.kind and device_refusal(model_config, d, where) is None
    )


def device_sets(
    devices: tuple[DeviceCapacity, ...], count: int, *, mixed: bool
) -> Iterator[tuple[DeviceCapacity, ...]]:
    """Sets of that many devices of one type (any types when `mixed`), at most `MOST_SETS`."""
    if count == 1:
        for device in devices:
            yield (device,)
        return
    groups: dict[str, list[DeviceCapacity]] = {}
    for device in devices:
        groups.setdefault("" if mixed else device.name, []).append(device)
    found = (s for group in groups.values() for s in combinations(group, count))
    yield from islice(found, MOST_SETS)


def with_room(
    model_config: ModelConfig,
    capacity: NodeCapacity,
    shape: Shape,
    where: PlacementConstraints,
    prefer: Prefer,
) -> tuple[DeviceCapacity, ...] | None:
    """The set of devices that has room for the shape as things are, the best by `prefer`.

    Args:
        model_config: of the model.
        capacity: of the node.
        shape: what is to be placed.
        where: what the operator wants.
        prefer: pack takes the least that suffices, spread the most. A model whose size nobody knows is
            spread in any case: where most is free, its load is most likely to succeed.
    """
    need, kind = shape.size.device_mb, shape.kind
    spread = prefer is Prefer.SPREAD or shape.size.source is SizeSource.UNKNOWN
    groups: dict[str, list[DeviceCapacity]] = {}
    for device in reversed(capacity.by_available) if spread else capacity.by_available:
        if device.available_mb < need or device.kind is not kind:
            continue
        if device_refusal(model_config, device, where) is not None:
            continue
        if shape.devices == 1:
            return (device,)
        group = groups.setdefault("" if model_config.mixed_devices else device.name, [])
        group.append(device)
        if len(group) == shape.devices:
            return tuple(sorted(group, key=lambda d: d.index))
    return None
