"""Why a model is not placed on each device, as plans and errors report it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cortex_common.config.catalogue import ModelConfig
from cortex_server.placement.capacity import NodeCapacity
from cortex_server.placement.fit import PlacementConstraints, Shape, device_refusal, node_refusal
from cortex_server.placement.policy import Policy


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a device, or a whole node, does not take a model.

    Attributes:
        node: the node.
        device: index of the device; None for the node as a whole.
        reason: text for people.
        missing_mb: MiB missing now; None when memory is not the reason.
        reclaimable_mb: MiB on the device held by unpinned instances.
    """

    node: str
    device: int | None
    reason: str
    missing_mb: int | None = None
    reclaimable_mb: int = 0


def refusals(
    model_config: ModelConfig,
    constraints: PlacementConstraints,
    shapes: Sequence[Shape],
    capacities: Sequence[NodeCapacity],
    policy: Policy,
) -> Iterator[Refusal]:
    """Yield a reason for each device, or one for a node whose devices are not considered."""
    for capacity in capacities:
        labels = policy.labels.get(capacity.node.name)
        if (reason := node_refusal(model_config, capacity.node, constraints, labels)) is not None:
            yield Refusal(capacity.node.name, None, reason)
        else:
            yield from _device_refusals(model_config, constraints, shapes, capacity)


def _device_refusals(
    model_config: ModelConfig,
    constraints: PlacementConstraints,
    shapes: Sequence[Shape],
    capacity: NodeCapacity,
) -> list[Refusal]:
    reclaimable, pinned = _held_by_device(capacity)
    if not capacity.devices:
        return [Refusal(capacity.node.name, None, "the node has no device")]
    refusals: list[Refusal] = []
    for device in capacity.devices:
        reclaimable_mb = reclaimable[device.index]
        reason = device_refusal(model_config, device, constraints)
        usable_shapes = [s for s in shapes if s.kind is device.kind]
        if reason is not None or not usable_shapes:
            reason = reason or f"the model cannot use a {device.kind} device"
            refusals.append(Refusal(capacity.node.name, device.index, reason, None, reclaimable_mb))
            continue
        smallest = min(usable_shapes, key=lambda s: s.needed_mb(device))
        needed_mb, available_mb = smallest.needed_mb(device), device.available_mb
        if needed_mb > available_mb:
            text = f"needs {needed_mb} MiB ({smallest.source_on(device)}), {available_mb} available"
            if reclaimable_mb:
                text += f", {reclaimable_mb} held by instances that could be evicted"
            if pinned_models := pinned.get(device.index):
                text += f"; pinned there: {', '.join(sorted(pinned_models))}"
            refusals.append(
                Refusal(
                    capacity.node.name, device.index, text, needed_mb - available_mb, reclaimable_mb
                )
            )
        else:
            text = "has enough memory; another device was preferred"
            if smallest.devices > 1:
                text = f"has enough memory, but {smallest.devices} such devices are needed"
            refusals.append(Refusal(capacity.node.name, device.index, text, None, reclaimable_mb))
    return refusals


def _held_by_device(capacity: NodeCapacity) -> tuple[Counter[int], Mapping[int, set[str]]]:
    """Return by device the MiB held by unpinned instances, and the pinned models."""
    reclaimable: Counter[int] = Counter()
    pinned: defaultdict[int, set[str]] = defaultdict(set)
    for instance in capacity.instances:
        for index, mb in capacity.memory_of(instance).items():
            if instance.pinned:
                pinned[index].add(instance.model)
            else:
                reclaimable[index] += mb
    return reclaimable, pinned
