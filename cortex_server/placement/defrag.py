"""Moves that join scattered free memory into a block that a model fits into.

An instance is moved by loading a copy where memory is available already, shifting its requests, and draining the
original. So no planned move interrupts requests, and none waits for another. Moves that would first need other moves
are not considered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cortex_common.schema.fleet import InstanceView, NodeState
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import (
    DeviceCapacity,
    NodeCapacity,
    memory_by_device,
)
from cortex_server.placement.eviction import DEFAULT_STATS, StatsByModel

MAX_MOVABLE = 12
"""Instances of one device that are considered, quickest to load first."""


@dataclass(frozen=True, slots=True)
class Move:
    """An instance that moves to another device.

    Attributes:
        instance: the instance.
        model: its model.
        node: its node now.
        device: its device now.
        to_node: the node it moves to.
        to_device: the device it moves to.
        mb: MiB that it takes there and frees here.
        seconds: expected seconds to load the copy.
        in_flight: requests on the original, which finish there.
    """

    instance: InstanceId
    model: ModelId
    node: str
    device: int
    to_node: str
    to_device: int
    mb: int
    seconds: float
    in_flight: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what may be moved.

    Attributes:
        moves: number of instances.
        seconds: seconds of loading in total.
        cross_node: allow moves to other nodes.
    """

    moves: int = 3
    seconds: float = 600.0
    cross_node: bool = False


@dataclass(frozen=True, slots=True)
class DefragPlan:
    """Moves that create a free block.

    Attributes:
        node: the node where the block is created.
        device: the device.
        before_mb: the largest free block among the nodes considered, before.
        after_mb: the free block on the device afterwards.
        moves: the moves in order; none when no better block is possible.
    """

    node: str
    device: int
    before_mb: int
    after_mb: int
    moves: tuple[Move, ...]


def plan_defrag(
    capacities: Sequence[NodeCapacity],
    stats: StatsByModel,
    budget: Budget,
    *,
    wanted_mb: int | None = None,
    only: str | None = None,
) -> DefragPlan | None:
    """Plan the moves that create a block of the wanted size, or the largest block.

    Args:
        capacities: capacities of the nodes.
        stats: model statistics, for load times.
        budget: limits on what may be moved.
        wanted_mb: MiB wanted on one device: plans the fewest, then quickest moves. None for the largest block within
            the budget.
        only: create the block on this node.

    Returns:
        None when no device gets such a block, or a larger one than there is. A plan without moves means that the block
        exists already.
    """
    usable = [
        capacity
        for capacity in capacities
        if capacity.node.state is NodeState.UP and not capacity.node.cordoned
    ]
    candidates = [capacity for capacity in usable if only in {None, capacity.node.name}]
    blocks = [
        (d.available_mb, capacity.node.name, d.index)
        for capacity in candidates
        for d in _usable(capacity)
    ]
    if not blocks:
        return None
    largest_mb, node, device = max(blocks, key=lambda b: b[0])
    if wanted_mb is not None and largest_mb >= wanted_mb:
        return DefragPlan(node, device, largest_mb, largest_mb, ())
    best: DefragPlan | None = None
    for capacity in candidates:
        destinations = usable if budget.cross_node else [capacity]
        for source in _usable(capacity):
            for moves in _possible_moves(capacity, source, destinations, stats, budget):
                after_mb = source.available_mb + sum(move.mb for move in moves)
                plan = DefragPlan(capacity.node.name, source.index, largest_mb, after_mb, moves)
                if after_mb < (wanted_mb or largest_mb + 1):
                    continue
                if best is None or _is_better(plan, best, wanted=wanted_mb is not None):
                    best = plan
    return best


def _is_better(plan: DefragPlan, other: DefragPlan, *, wanted: bool) -> bool:
    return _rank(plan, wanted=wanted) < _rank(other, wanted=wanted)


def _rank(plan: DefragPlan, *, wanted: bool) -> tuple[float, ...]:
    effort = (
        len(plan.moves),
        sum(m.in_flight for m in plan.moves),
        sum(m.seconds for m in plan.moves),
    )
    return effort if wanted else (-plan.after_mb, *effort)


def _usable(capacity: NodeCapacity) -> list[DeviceCapacity]:
    return [d for d in capacity.devices if d.health is DeviceHealth.OK]


def _possible_moves(
    capacity: NodeCapacity,
    source: DeviceCapacity,
    destinations: Sequence[NodeCapacity],
    stats: StatsByModel,
    budget: Budget,
) -> Iterator[tuple[Move, ...]]:
    """Yield every set of moves within the budget that takes instances off a device."""
    movable = [instance for instance in capacity.instances if _is_movable(instance, source.index)]
    seconds = {
        instance.id: stats.get(instance.model, DEFAULT_STATS).reload_s for instance in movable
    }
    movable.sort(key=lambda instance: (seconds[instance.id], instance.id))
    for count in range(1, budget.moves + 1):
        for instances in combinations(movable[:MAX_MOVABLE], count):
            if sum(seconds[instance.id] for instance in instances) <= budget.seconds:
                assigned = _assign_destinations(instances, source, capacity, destinations)
                if assigned is not None:
                    yield tuple(
                        _move(instance, source.index, *assigned[instance.id], seconds[instance.id])
                        for instance in instances
                    )


def _is_movable(instance: InstanceView, device: int) -> bool:
    """Return whether an instance is ready, not pinned, and on this device only."""
    return (
        instance.devices == (device,)
        and instance.state is InstanceState.READY
        and not instance.pinned
    )


def _move(
    instance: InstanceView, device: int, to_node: str, to_device: int, seconds: float
) -> Move:
    return Move(
        instance=instance.id,
        model=instance.model,
        node=instance.node,
        device=device,
        to_node=to_node,
        to_device=to_device,
        mb=memory_by_device(instance)[device],
        seconds=seconds,
        in_flight=instance.in_flight,
    )


def _assign_destinations(
    instances: Sequence[InstanceView],
    source: DeviceCapacity,
    capacity: NodeCapacity,
    destinations: Sequence[NodeCapacity],
) -> Mapping[InstanceId, tuple[str, int]] | None:
    """Assign destinations: largest instance first, to the fullest device that suffices, on its own node if possible.

    An instance never moves to a device of another kind or product, nor to a node without its harness.
    """
    available = {
        (node_capacity.node.name, d.index): d.available_mb
        for node_capacity in destinations
        for d in _usable(node_capacity)
        if (node_capacity.node.name, d.index) != (capacity.node.name, source.index)
        and d.kind is source.kind
        and d.name == source.name
    }
    harnesses = {
        node_capacity.node.name: node_capacity.node.harnesses for node_capacity in destinations
    }
    assigned: dict[InstanceId, tuple[str, int]] = {}
    for instance in sorted(instances, key=lambda i: (-memory_by_device(i)[source.index], i.id)):
        mb = memory_by_device(instance)[source.index]
        sufficient = [
            (name != capacity.node.name, available_mb, name, index)
            for (name, index), available_mb in available.items()
            if available_mb >= mb and instance.harness in harnesses[name]
        ]
        if not sufficient:
            return None
        _, available_mb, name, index = min(sufficient)
        assigned[instance.id] = (name, index)
        available[name, index] = available_mb - mb
    return assigned
