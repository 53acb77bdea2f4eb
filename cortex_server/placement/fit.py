"""Which devices of a node can hold a model: sizes, requirements, and sets of devices with enough memory.

All sizes are MiB per device: an instance over n devices needs its share on each of them.
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
        harness: name of the harness.
        kind: kind of its devices.
        devices: number of its devices.
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
        device_mb: 0 while unknown; the node then estimates from the weights and reports the estimate when it refuses.
        source: where the number comes from.
    """

    device_mb: int
    source: SizeSource


Sizes = Mapping[SizeKey, Size]
"""Sizes measured by loads, or reported by a node that refused one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to lay out a model: the number and kind of its devices, and the MiB on each."""

    kind: DeviceKind
    devices: int
    size: Size


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
        model_config.harness,
        kind,
        devices,
    )


def lookup_size(model_config: ModelConfig, kind: DeviceKind, devices: int, sizes: Sizes) -> Size:
    """Return the most reliable size: measured, reported by a node, configured, or unknown."""
    if (size := sizes.get(size_key(model_config, kind, devices))) is not None:
        return size
    if model_config.vram_mb is not None:
        return Size(-(-model_config.vram_mb // devices), SizeSource.CONFIGURED)
    return Size(0, SizeSource.UNKNOWN)


def possible_shapes(model_config: ModelConfig, sizes: Sizes) -> tuple[Shape, ...]:
    """Return all ways to lay out a model in order of preference: GPUs first, fewer devices first."""
    all_kinds = (DeviceKind.CUDA, DeviceKind.CPU)
    kinds = all_kinds if model_config.device_kind is None else (model_config.device_kind,)
    max_devices = model_config.max_devices or model_config.min_devices
    counts = [model_config.min_devices]
    while counts[-1] * 2 <= max_devices:
        counts.append(counts[-1] * 2)
    return tuple(
        Shape(kind, count, lookup_size(model_config, kind, count, sizes))
        for kind in kinds
        for count in counts
    )


@dataclass(frozen=True, slots=True)
class PlacementConstraints:
    """Where an instance must be placed; set by operators, never by client requests.

    Attributes:
        node: the node; None for any.
        devices: the devices of that node; empty for any.
    """

    node: str | None = None
    devices: tuple[int, ...] = ()


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
    reason: str | None = None
    min_capability = model_config.min_compute_capability
    if constraints.devices and device.index not in constraints.devices:
        reason = "not among the requested devices"
    elif device.health is not DeviceHealth.OK:
        reason = device.reason or f"the device is {device.health}"
    elif model_config.device_kind is not None and device.kind is not model_config.device_kind:
        reason = f"a {device.kind} device, not {model_config.device_kind}"
    elif model_config.harness in device.unsupported_harnesses:
        reason = f"engines of harness {model_config.harness!r} do not run on a {device.kind} device"
    elif device.total_mb < model_config.min_device_vram_mb:
        reason = f"has {device.total_mb} MiB in total; the model requires {model_config.min_device_vram_mb}"
    elif (
        min_capability
        and device.kind is DeviceKind.CUDA
        and device.capability < parse_version(min_capability)
    ):
        reason = (
            f"compute capability {'.'.join(map(str, device.capability))} is below {min_capability}"
        )
    return reason


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
        if d.kind is shape.kind and device_refusal(model_config, d, constraints) is None
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
    needed_mb, kind = shape.size.device_mb, shape.kind
    spread = prefer is Prefer.SPREAD or shape.size.source is SizeSource.UNKNOWN
    groups: dict[str, list[DeviceCapacity]] = {}
    for device in (
        reversed(capacity.devices_by_available) if spread else capacity.devices_by_available
    ):
        if device.available_mb < needed_mb or device.kind is not kind:
            continue
        if device_refusal(model_config, device, constraints) is not None:
            continue
        if shape.devices == 1:
            return (device,)
        group = groups.setdefault("" if model_config.mixed_devices else device.name, [])
        group.append(device)
        if len(group) == shape.devices:
            return tuple(sorted(group, key=lambda d: d.index))
    return None
