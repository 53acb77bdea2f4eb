"""Moves that turn scattered free memory into a block that a model fits into.

An instance is moved by loading a copy where there is room already, shifting requests to it, and draining the original,
so every move planned here can be carried out without an interruption, and none waits for another. Moves that would
first need others out of the way are not looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from cortex_common.schema.fleet import InstanceView, NodeState
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import DeviceCapacity, NodeCapacity, frees
from cortex_server.placement.eviction import UNKNOWN, StatsByModel

MOST_MOVABLE = 12
"""Instances of one device that are considered, the quickest to load first."""


@dataclass(frozen=True, slots=True)
class Move:
    """One instance that changes its device.

    Attributes:
        mb: MiB that it takes there, and frees where it was.
        seconds: that its copy is expected to load.
        in_flight: requests on the original, which end there.
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
    """How much may be moved.

    Attributes:
        moves: at most so many instances.
        seconds: at most so many seconds of loading.
        cross_node: also to other nodes.
    """

    moves: int = 3
    seconds: float = 600.0
    cross_node: bool = False


@dataclass(frozen=True, slots=True)
class Defrag:
    """Moves that make a block.

    Attributes:
        node: where the block comes to be.
        device: on which device.
        before_mb: the largest free block among the nodes looked at, before.
        after_mb: the free block on that device afterwards.
        moves: in the order in which they are made; none when nothing better can be had.
    """

    node: str
    device: int
    before_mb: int
    after_mb: int
    moves: tuple[Move, ...]


def defrag(
    capacities: Sequence[NodeCapacity],
    stats: StatsByModel,
    budget: Budget,
    *,
    wanted_mb: int | None = None,
    only: str | None = None,
) -> Defrag | None:
    """The moves that make the block that is wanted, or the largest block.

    Args:
        capacities: of the fleet.
        stats: for the seconds of a load.
        budget: how much may be moved.
        wanted_mb: MiB that are wanted on one device: the fewest, then quickest moves; None for the largest block
            that the budget can make.
        only: make the block on this node.

    Returns:
        None when no device gets such a block, or a larger one than there is. A plan without moves says that the block
        is there already.
    """
    fields = [r for r in capacities if r.node.state is NodeState.UP and not r.node.cordoned]
    sites = [r for r in fields if only in {None, r.node.name}]
    blocks = [(d.available_mb, r.node.name, d.index) for r in sites for d in _usable(r)]
    if not blocks:
        return None
    largest, node, device = max(blocks, key=lambda b: b[0])
    if wanted_mb is not None and largest >= wanted_mb:
        return Defrag(node, device, largest, largest, ())
    best: Defrag | None = None
    for capacity in sites:
        takers = fields if budget.cross_node else [capacity]
        for endpoint in _usable(capacity):
            for found in _emptied(capacity, endpoint, takers, stats, budget):
                after = endpoint.available_mb + sum(m.mb for m in found)
                plan = Defrag(capacity.node.name, endpoint.index, largest, after, found)
                if after < (wanted_mb or largest + 1):
                    continue
                if best is None or _better(plan, best, wanted=wanted_mb is not None):
                    best = plan
    return best


def _better(one: Defrag, other: Defrag, *, wanted: bool) -> bool:
    return _rank(one, wanted=wanted) < _rank(other, wanted=wanted)


def _rank(plan: Defrag, *, wanted: bool) -> tuple[float, ...]:
    effort = (
        len(plan.moves),
        sum(m.in_flight for m in plan.moves),
        sum(m.seconds for m in plan.moves),
    )
    return effort if wanted else (-plan.after_mb, *effort)


def _usable(capacity: NodeCapacity) -> list[DeviceCapacity]:
    return [d for d in capacity.devices if d.health is DeviceHealth.OK]


def _emptied(
    capacity: NodeCapacity,
    endpoint: DeviceCapacity,
    takers: Sequence[NodeCapacity],
    stats: StatsByModel,
    budget: Budget,
) -> Iterator[tuple[Move, ...]]:
    """Every set of instances that can leave a device within the budget, with where each would go."""
    movable = [i for i in capacity.instances if _movable(i, endpoint.index)]
    seconds = {i.id: stats.get(i.model, UNKNOWN).reload_s for i in movable}
    movable.sort(key=lambda i: (seconds[i.id], i.id))
    for count in range(1, budget.moves + 1):
        for chosen in combinations(movable[:MOST_MOVABLE], count):
            if sum(seconds[i.id] for i in chosen) <= budget.seconds:
                homes = _homes(chosen, endpoint, capacity, takers)
                if homes is not None:
                    yield tuple(
                        _move(i, endpoint.index, *homes[i.id], seconds[i.id]) for i in chosen
                    )


def _movable(instance: InstanceView, device: int) -> bool:
    """Ready, not pinned, and on this device alone."""
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
        mb=frees(instance)[device],
        seconds=seconds,
        in_flight=instance.in_flight,
    )


def _homes(
    leaving: Sequence[InstanceView],
    endpoint: DeviceCapacity,
    capacity: NodeCapacity,
    takers: Sequence[NodeCapacity],
) -> Mapping[InstanceId, tuple[str, int]] | None:
    """Where each goes: the largest first, into the tightest device that has room, on its own node if it can be.

    An instance does not go to another kind or type of card than it runs on, nor to a node without its harness.
    """
    free = {
        (r.node.name, d.index): d.available_mb
        for r in takers
        for d in _usable(r)
        if (r.node.name, d.index) != (capacity.node.name, endpoint.index)
        and d.kind is endpoint.kind
        and d.name == endpoint.name
    }
    harnesses = {r.node.name: r.node.harnesses for r in takers}
    homes: dict[InstanceId, tuple[str, int]] = {}
    for instance in sorted(leaving, key=lambda i: (-frees(i)[endpoint.index], i.id)):
        mb = frees(instance)[endpoint.index]
        able = [
            (name != capacity.node.name, left, name, index)
            for (name, index), left in free.items()
            if left >= mb and instance.harness in harnesses[name]
        ]
        if not able:
            return None
        _, left, name, index = min(able)
        homes[instance.id] = (name, index)
        free[name, index] = left - mb
    return homes
