"""What to do for a model that somebody wants: serve, join, load, wait, or say why nothing can be done.

`plan` only decides; the same inputs give the same plan. In order of preference: a ready instance; a load under way;
a load with no eviction; the eviction that loses least; waiting for room that busy or young instances hold; impossible.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import neg

from cortex_common.schema.fleet import InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import DeviceCapacity, NodeCapacity, frees, is_serving
from cortex_server.placement.eviction import UNKNOWN
from cortex_server.placement.eviction_candidates import EvictionRules, cheapest_place
from cortex_server.placement.explain import Refusal, refusals
from cortex_server.placement.failure_backoff import FailureBackoff
from cortex_server.placement.fit import (
    PlacementConstraints,
    Shape,
    device_sets,
    node_refusal,
    shapes,
    suitable,
    with_room,
)
from cortex_server.placement.policy import Policy, Prefer
from cortex_server.placement.state import ClusterState, PlacementRequest

MOST_REASONS = 64
"""Reasons that an impossible plan carries."""

LOST_FOR_S = 30.0
"""A node that answered so lately is expected back: a neuron that is upgraded, or a network that stumbles, is away for
seconds, and whoever waits is not turned away for that. One that said that it stops gets what it takes for that, too."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Instances are ready."""

    instances: tuple[InstanceId, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """A load is under way on this node; None of the instance when only promised."""

    node: str
    instance: InstanceId | None


@dataclass(frozen=True, slots=True)
class Load:
    """Load it there, after these evictions.

    Attributes:
        shape: over how many devices, with how much on each.
        evictions: instances that go first, the least loss first.
        why: the reason for the place, for people.
    """

    node: str
    devices: tuple[int, ...]
    shape: Shape
    evictions: tuple[InstanceId, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """There will be room, but not now.

    Attributes:
        instances: what holds it.
        why: what is waited for, for people.
    """

    instances: tuple[InstanceId, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Impossible:
    """Waiting would not help.

    Attributes:
        refusals: reasons by node and device, at most `MOST_REASONS`; `explain.refusals` gives all.
        no_node: not one node answers that could be asked at all, or one that would do does not.
        cordoned: nodes that would do, were they not cordoned.
    """

    refusals: tuple[Refusal, ...]
    no_node: bool
    cordoned: tuple[str, ...] = ()


Plan = Serve | Join | Load | Wait | Impossible


def plan(wish: PlacementRequest, world: ClusterState, policy: Policy) -> Plan:
    """Decide what is to be done for a wish; see the module."""
    model = ModelId(wish.profile.id)
    if not wish.another and (found := present(model, wish.where, world)) is not None:
        return found
    if (unheard := _unheard(wish, world)) is not None:
        return Wait((), f"node {unheard} has not answered yet, and may have it")
    rooms = _able(wish, world.rooms, policy)
    layouts = shapes(wish.profile, world.sizes)
    for shape in layouts:
        if (free := _free_place(wish, shape, rooms, world, policy)) is not None:
            return free
    if wish.may_evict and (made := _made_place(wish, layouts, rooms, world, policy)) is not None:
        return made
    if (soon := _room_to_come(wish, layouts, rooms, world)) is not None:
        return soon
    asked = any(r.node.state is NodeState.UP for r in world.rooms)
    reasons = refusals(wish.profile, wish.where, layouts, world.rooms, policy)
    barred = _barred(wish, world, policy)
    return Impossible(
        tuple(islice(reasons, MOST_REASONS)),
        no_node=not asked or not all(node.cordoned for node in barred),
        cordoned=tuple(node.name for node in barred if node.cordoned),
    )


def _barred(wish: PlacementRequest, world: ClusterState, policy: Policy) -> list[NodeView]:
    """The nodes that a wish could be loaded on, now or after a wait, were they not cordoned and did they answer.

    One that never answered has not told what it has: it may do.
    """
    anew = replace(wish, another=True)
    found = []
    for room in world.rooms:
        node = room.node
        if node.cordoned or node.state is NodeState.UNREACHABLE:
            lifted = replace(room, node=replace(node, cordoned=False, state=NodeState.UP))
            alone = replace(world, rooms=(lifted,))
            told = node.state is NodeState.UP or node.harnesses or node.upstream
            may = not told and _meant(wish, node)
            if may or not isinstance(plan(anew, alone, policy), Impossible):
                found.append(node)
    return found


def _able(
    wish: PlacementRequest, rooms: Iterable[NodeCapacity], policy: Policy
) -> list[NodeCapacity]:
    """Those whose devices are to be looked at."""
    profile, where, avoid, labels = wish.profile, wish.where, wish.avoid, policy.labels
    harness = profile.harness
    found = [r for r in rooms if harness in r.open_to]
    if avoid:
        found = [r for r in found if r.node.name not in avoid]
    if where.node is None and not profile.nodes and not profile.labels:
        return found
    return [
        r for r in found if node_refusal(profile, r.node, where, labels.get(r.node.name)) is None
    ]


def present(
    model: ModelId, where: PlacementConstraints, world: ClusterState
) -> Serve | Join | None:
    """The model's ready instances, or else a load of it under way."""
    ready: list[InstanceId] = []
    loading: Join | None = None
    for room in world.rooms:
        if where.node is not None and room.node.name != where.node:
            continue
        if model in room.models:
            for i in room.instances:
                if i.model != model or (where.devices and set(i.devices) != set(where.devices)):
                    continue
                if is_serving(room, i):
                    ready.append(i.id)
                elif i.state is InstanceState.LOADING and room.node.state is NodeState.UP:
                    loading = loading or Join(room.node.name, i.id)
        if room.promised and any(p.model == model for p in room.promised):
            loading = loading or Join(room.node.name, None)
    return Serve(tuple(ready)) if ready else loading


def _unheard(wish: PlacementRequest, world: ClusterState) -> str | None:
    """A node that may hold the model for all that is known: as it has just been added, or the gateway just begun."""
    for room in world.rooms:
        if room.node.state is NodeState.CONNECTING and _meant(wish, room.node):
            return room.node.name
    return None


def _meant(wish: PlacementRequest, node: NodeView) -> bool:
    """Whether it may go there by the node's name."""
    return wish.where.node in {None, node.name} and node.name in (wish.profile.nodes or {node.name})


def _free_place(
    wish: PlacementRequest,
    shape: Shape,
    rooms: Iterable[NodeCapacity],
    world: ClusterState,
    policy: Policy,
) -> Load | None:
    """Where the shape has room as things are: weights on disk first, then as the policy prefers."""
    need, count, kind = shape.size.device_mb, shape.devices, shape.kind
    stored = world.stored.get(ModelId(wish.profile.id), frozenset())
    spread = policy.prefer is Prefer.SPREAD or not need
    best: tuple[bool, int, NodeCapacity, tuple[DeviceCapacity, ...]] | None = None
    for room in rooms:
        free = room.free.get(kind, ())
        if len(free) < count or free[count - 1] < need:
            continue
        if best is not None:
            at_best = -sum(free[:count]) if spread else _tightest(free, count, need)
            if (room.node.name not in stored, at_best) >= best[:2]:
                continue
        found = with_room(wish.profile, room, shape, wish.where, policy.prefer)
        if found is None:
            continue
        left = sum(d.available_mb for d in found)
        key = (room.node.name not in stored, -left if spread else left)
        if best is None or key < best[:2]:
            best = (*key, room, found)
    if best is None:
        return None
    fresh, _, room, found = best
    taste = "the most room" if spread else "the tightest room"
    if not need:
        taste += ", as its size is not known before its first load"
    why = taste if fresh else f"its weights are on that disk; {taste} there"
    return Load(room.node.name, tuple(sorted(d.index for d in found)), shape, (), why)


def _tightest(free: Sequence[int], count: int, need: int) -> int:
    """MiB of the tightest so many devices that have room, of some with the most free first."""
    enough = bisect_right(free, -need, key=neg)
    return sum(free[enough - count : enough])


def _made_place(
    wish: PlacementRequest,
    layouts: Sequence[Shape],
    rooms: Sequence[NodeCapacity],
    world: ClusterState,
    policy: Policy,
) -> Load | Wait | None:
    """The eviction that loses least; a wait where only young or busy instances could go, until patience ends."""
    late = policy.patience_s
    last = late + policy.min_residency_s
    tiers = (("idle", 0.0), ("lately loaded", late), ("busy", late), ("busy young", last))
    for tier, (what, from_s) in enumerate(tiers):
        guard = EvictionRules(world, policy, wish, tier)
        for shape in layouts:
            place = cheapest_place(shape, rooms, guard)
            if place is None:
                continue
            victims = tuple(v.id for v in place.choice.victims)
            if wish.waited_s < from_s:
                return Wait(
                    victims, f"the room is held by {what} instances on {place.room.node.name}"
                )
            return Load(
                place.room.node.name,
                tuple(sorted(d.index for d in place.devices)),
                place.shape,
                victims,
                f"least lost by evicting {what} instances ({policy.strategy})",
            )
    return None


def _room_to_come(
    wish: PlacementRequest,
    layouts: Sequence[Shape],
    rooms: Iterable[NodeCapacity],
    world: ClusterState,
) -> Wait | None:
    """Room that comes without anybody being evicted now: loads that end, drains, nodes that are about to answer."""
    for room in world.rooms:
        named = wish.where.node is None or room.node.name == wish.where.node
        if named and (why := _about_to_answer(room, wish.profile.harness, world.now)) is not None:
            return Wait((), why)
    for room in rooms:
        if not room.moving and not room.promised and not wish.spared:
            continue
        holders = tuple(i.id for i in room.instances if _is_moving(i, room, wish))
        held = _held(room, holders, wish, world)
        for shape in layouts:
            devices = suitable(wish.profile, room, shape, wish.where)
            need = shape.size.device_mb
            able = tuple(d for d in devices if d.available_mb + held.get(d.index, 0) >= need)
            sets = device_sets(able, shape.devices, mixed=wish.profile.mixed_devices)
            if (holders or room.promised) and next(sets, None) is not None:
                return Wait(holders, f"room on {room.node.name} is in use or on its way")
    return None


def _about_to_answer(room: NodeCapacity, harness: str, now: float) -> str | None:
    """Why a node that does not answer now may do so any moment; None when it does, or is not expected to."""
    node = room.node
    if node.state is NodeState.CONNECTING:
        return f"node {node.name} has not answered yet"
    lately = 0 <= now - node.seen_at < LOST_FOR_S + node.stopping_s
    if node.state is NodeState.UNREACHABLE and lately and harness in node.harnesses:
        return f"node {node.name} answered until a moment ago"
    return None


def _held(
    room: NodeCapacity, holders: Sequence[InstanceId], wish: PlacementRequest, world: ClusterState
) -> Mapping[int, int]:
    """MiB by device that loads under way take, moving instances hold, and others could give up besides."""
    held: dict[int, int] = {}
    for promise in room.promised:
        for index in promise.devices:
            held[index] = held.get(index, 0) + promise.device_mb
    for i in room.instances:
        if i.id in holders or (wish.may_evict and _may_move(i, wish, world)):
            for index, mb in frees(i).items():
                held[index] = held.get(index, 0) + mb
    return held


def _is_moving(instance: InstanceView, room: NodeCapacity, wish: PlacementRequest) -> bool:
    """Whether its memory may come free, or become evictable, without anything being decided now."""
    if not wish.may_evict:
        return instance.state in {InstanceState.DRAINING, InstanceState.STOPPING}
    return instance.id in room.moving or (instance.id in wish.spared and not instance.pinned)


def _may_move(instance: InstanceView, wish: PlacementRequest, world: ClusterState) -> bool:
    standing = world.standings.get(instance.model, UNKNOWN)
    return not instance.pinned and instance.model != wish.profile.id and not standing.keep


def decide(
    wish: PlacementRequest,
    world: ClusterState,
    policy: Policy,
    troubles: FailureBackoff,
    now: float,
    *,
    forgiven: bool = False,
) -> Plan:
    """What to do for a wish.

    Args:
        wish: for what.
        world: the fleet, and what is decided about it.
        policy: the operator's choices.
        troubles: what went wrong lately.
        now: monotonic seconds.
        forgiven: as an operator wishes it, who forgives what engines did.
    """
    model = wish.profile.id
    avoid = wish.avoid.union(troubles.avoided(model, now))
    spared = frozenset(i for i, until in troubles.spared.items() if now < until)
    wish = replace(wish, spared=spared, avoid=avoid)
    if forgiven:
        return plan(wish, world, policy)
    wish = replace(wish, avoid=avoid.union(troubles.unable(model, now)))
    decided = plan(wish, world, policy)
    crashed = troubles.crashed(model, now)
    if not isinstance(decided, Load) or decided.node not in crashed:
        return decided
    # Elsewhere, where that costs nobody anything, if an engine failed there: another host may be sound.
    other = plan(replace(wish, avoid=wish.avoid | crashed, may_evict=False), world, policy)
    return other if isinstance(other, Load) else decided


def dry_run(
    wish: PlacementRequest,
    world: ClusterState,
    policy: Policy,
    troubles: FailureBackoff,
    now: float,
    *,
    force: bool = False,
) -> Plan:
    """What would become of a wish that somebody had now; see `decide`, and `Ask.insists`."""
    model = wish.profile.id
    trouble = None if force else troubles.failed_lately(model, now)
    if trouble is not None:
        return Wait((), f"its last load failed: {trouble.reason}")
    found = decide(wish, world, policy, troubles, now, forgiven=force)
    if isinstance(found, Impossible) and (resting := troubles.avoided(model, now)):
        nodes = ", ".join(sorted(resting))
        return Wait((), f"{nodes} refused or lost it a moment ago, and is asked again soon")
    return found
