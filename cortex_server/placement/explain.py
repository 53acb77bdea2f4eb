"""Why a model is not placed where it is not: the ledger that plans and refusals show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cortex_common.config.catalogue import ModelConfig
from cortex_server.placement.capacity import NodeCapacity, frees
from cortex_server.placement.fit import PlacementConstraints, Shape, device_refusal, node_refusal
from cortex_server.placement.policy import Policy


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one device, or a whole node (device None), does not take a model.

    Attributes:
        missing_mb: MiB that it lacks now; None when memory is not the reason.
        reclaimable_mb: MiB on it that unpinned instances hold.
    """

    node: str
    device: int | None
    reason: str
    missing_mb: int | None = None
    reclaimable_mb: int = 0


def refusals(
    model_config: ModelConfig,
    where: PlacementConstraints,
    layouts: Sequence[Shape],
    capacities: Sequence[NodeCapacity],
    policy: Policy,
) -> Iterator[Refusal]:
    """One reason for each device, or for a node whose devices need not be looked at."""
    for capacity in capacities:
        labels = policy.labels.get(capacity.node.name)
        if (reason := node_refusal(model_config, capacity.node, where, labels)) is not None:
            yield Refusal(capacity.node.name, None, reason)
        else:
            yield from _of_devices(model_config, where, layouts, capacity)


def _of_devices(
    model_config: ModelConfig,
    where: PlacementConstraints,
    layouts: Sequence[Shape],
    capacity: NodeCapacity,
) -> list[Refusal]:
    reclaimable, pinned = _held(capacity)
    if not capacity.devices:
        return [Refusal(capacity.node.name, None, "the node has no device")]
    found: list[Refusal] = []
    for device in capacity.devices:
        may_free = reclaimable[device.index]
        reason = device_refusal(model_config, device, where)
        needs = [s for s in layouts if s.kind is device.kind]
        if reason is not None or not needs:
            reason = reason or f"no layout of the model uses a {device.kind} device"
            found.append(Refusal(capacity.node.name, device.index, reason, None, may_free))
            continue
        least = min(needs, key=lambda s: s.size.device_mb)
        need, have = least.size.device_mb, device.available_mb
        if need > have:
            text = f"needs {need} MiB ({least.size.source}), {have} available"
            if may_free:
                text += f", {may_free} held by instances that could go"
            if held := pinned.get(device.index):
                text += f"; pinned there: {', '.join(sorted(held))}"
            found.append(Refusal(capacity.node.name, device.index, text, need - have, may_free))
        else:
            text = "has room, another has less to spare"
            if least.devices > 1:
                text = f"has room; {least.devices} such devices are needed together"
            found.append(Refusal(capacity.node.name, device.index, text, None, may_free))
    return found


def _held(capacity: NodeCapacity) -> tuple[Counter[int], Mapping[int, set[str]]]:
    """By device: the MiB that instances hold that could go, and the models that may not."""
    reclaimable: Counter[int] = Counter()
    pinned: defaultdict[int, set[str]] = defaultdict(set)
    for instance in capacity.instances:
        for index, mb in frees(instance).items():
            if instance.pinned:
                pinned[index].add(instance.model)
            else:
                reclaimable[index] += mb
    return reclaimable, pinned
