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


def plan(request: PlacementRequest, cluster: ClusterState, policy: Policy) -> Plan:
    """Decide what is to be done for a wish; see the module."""
    model = ModelId(request.model_config.id)
    if not request.replica and (found := present(model, request.where, cluster)) is not None:
        return found
    if (unheard := _unheard(request, cluster)) is not None:
        return Wait((), f"node {unheard} has not answered yet, and may have it")
    capacities = _able(request, cluster.capacities, policy)
    layouts = shapes(request.model_config, cluster.sizes)
    for shape in layouts:
        if (free := _free_place(request, shape, capacities, cluster, policy)) is not None:
            return free
    if (
        request.may_evict
        and (made := _made_place(request, layouts, capacities, cluster, policy)) is not None
    ):
        return made
    if (soon := _room_to_come(request, layouts, capacities, cluster)) is not None:
        return soon
    asked = any(r.node.state is NodeState.UP for r in cluster.capacities)
    reasons = refusals(request.model_config, request.where, layouts, cluster.capacities, policy)
    barred = _barred(request, cluster, policy)
    return Impossible(
        tuple(islice(reasons, MOST_REASONS)),
        no_node=not asked or not all(node.cordoned for node in barred),
        cordoned=tuple(node.name for node in barred if node.cordoned),
    )


def _barred(request: PlacementRequest, cluster: ClusterState, policy: Policy) -> list[NodeView]:
    """The nodes that a wish could be loaded on, now or after a wait, were they not cordoned and did they answer.

    One that never answered has not told what it has: it may do.
    """
    anew = replace(request, replica=True)
    found = []
    for capacity in cluster.capacities:
        node = capacity.node
        if node.cordoned or node.state is NodeState.UNREACHABLE:
            lifted = replace(capacity, node=replace(node, cordoned=False, state=NodeState.UP))
            alone = replace(cluster, capacities=(lifted,))
            told = node.state is NodeState.UP or node.harnesses or node.upstream
            may = not told and _meant(request, node)
            if may or not isinstance(plan(anew, alone, policy), Impossible):
                found.append(node)
    return found


def _able(
    request: PlacementRequest, capacities: Iterable[NodeCapacity], policy: Policy
) -> list[NodeCapacity]:
    """Those whose devices are to be looked at."""
    model_config, where, avoid, labels = (
        request.model_config,
        request.where,
        request.avoid,
        policy.labels,
    )
    harness = model_config.harness
    found = [r for r in capacities if harness in r.open_to]
    if avoid:
        found = [r for r in found if r.node.name not in avoid]
    if where.node is None and not model_config.nodes and not model_config.labels:
        return found
    return [
        r
        for r in found
        if node_refusal(model_config, r.node, where, labels.get(r.node.name)) is None
    ]


def present(
    model: ModelId, where: PlacementConstraints, cluster: ClusterState
) -> Serve | Join | None:
    """The model's ready instances, or else a load of it under way."""
    ready: list[InstanceId] = []
    loading: Join | None = None
    for capacity in cluster.capacities:
        if where.node is not None and capacity.node.name != where.node:
            continue
        if model in capacity.models:
            for i in capacity.instances:
                if i.model != model or (where.devices and set(i.devices) != set(where.devices)):
                    continue
                if is_serving(capacity, i):
                    ready.append(i.id)
                elif i.state is InstanceState.LOADING and capacity.node.state is NodeState.UP:
                    loading = loading or Join(capacity.node.name, i.id)
        if capacity.reservations and any(p.model == model for p in capacity.reservations):
            loading = loading or Join(capacity.node.name, None)
    return Serve(tuple(ready)) if ready else loading


def _unheard(request: PlacementRequest, cluster: ClusterState) -> str | None:
    """A node that may hold the model for all that is known: as it has just been added, or the gateway just begun."""
    for capacity in cluster.capacities:
        if capacity.node.state is NodeState.CONNECTING and _meant(request, capacity.node):
            return capacity.node.name
    return None


def _meant(request: PlacementRequest, node: NodeView) -> bool:
    """Whether it may go there by the node's name."""
    return request.where.node in {None, node.name} and node.name in (
        request.model_config.nodes or {node.name}
    )


def _free_place(
    request: PlacementRequest,
    shape: Shape,
    capacities: Iterable[NodeCapacity],
    cluster: ClusterState,
    policy: Policy,
) -> Load | None:
    """Where the shape has room as things are: weights on disk first, then as the policy prefers."""
    need, count, kind = shape.size.device_mb, shape.devices, shape.kind
    stored = cluster.stored.get(ModelId(request.model_config.id), frozenset())
    spread = policy.prefer is Prefer.SPREAD or not need
    best: tuple[bool, int, NodeCapacity, tuple[DeviceCapacity, ...]] | None = None
    for capacity in capacities:
        free = capacity.free.get(kind, ())
        if len(free) < count or free[count - 1] < need:
            continue
        if best is not None:
            at_best = -sum(free[:count]) if spread else _tightest(free, count, need)
            if (capacity.node.name not in stored, at_best) >= best[:2]:
                continue
        found = with_room(request.model_config, capacity, shape, request.where, policy.prefer)
        if found is None:
            continue
        left = sum(d.available_mb for d in found)
        key = (capacity.node.name not in stored, -left if spread else left)
        if best is None or key < best[:2]:
            best = (*key, capacity, found)
    if best is None:
        return None
    fresh, _, capacity, found = best
    taste = "the most room" if spread else "the tightest room"
    if not need:
        taste += ", as its size is not known before its first load"
    why = taste if fresh else f"its weights are on that disk; {taste} there"
    return Load(capacity.node.name, tuple(sorted(d.index for d in found)), shape, (), why)


def _tightest(free: Sequence[int], count: int, need: int) -> int:
    """MiB of the tightest so many devices that have room, of some with the most free first."""
    enough = bisect_right(free, -need, key=neg)
    return sum(free[enough - count : enough])


def _made_place(
    request: PlacementRequest,
    layouts: Sequence[Shape],
    capacities: Sequence[NodeCapacity],
    cluster: ClusterState,
    policy: Policy,
) -> Load | Wait | None:
    """The eviction that loses least; a wait where only young or busy instances could go, until patience ends."""
    late = policy.patience_s
    last = late + policy.min_residency_s
    tiers = (("idle", 0.0), ("lately loaded", late), ("busy", late), ("busy young", last))
    for tier, (what, from_s) in enumerate(tiers):
        guard = EvictionRules(cluster, policy, request, tier)
        for shape in layouts:
            place = cheapest_place(shape, capacities, guard)
            if place is None:
                continue
            candidates = tuple(v.id for v in place.choice.candidates)
            if request.waited_s < from_s:
                return Wait(
                    candidates,
                    f"the room is held by {what} instances on {place.capacity.node.name}",
                )
            return Load(
                place.capacity.node.name,
                tuple(sorted(d.index for d in place.devices)),
                place.shape,
                candidates,
                f"least lost by evicting {what} instances ({policy.strategy})",
            )
    return None


def _room_to_come(
    request: PlacementRequest,
    layouts: Sequence[Shape],
    capacities: Iterable[NodeCapacity],
    cluster: ClusterState,
) -> Wait | None:
    """Room that comes without anybody being evicted now: loads that end, drains, nodes that are about to answer."""
    for capacity in cluster.capacities:
        named = request.where.node is None or capacity.node.name == request.where.node
        if (
            named
            and (why := _about_to_answer(capacity, request.model_config.harness, cluster.now))
            is not None
        ):
            return Wait((), why)
    for capacity in capacities:
        if not capacity.moving and not capacity.reservations and not request.spared:
            continue
        holders = tuple(i.id for i in capacity.instances if _is_moving(i, capacity, request))
        held = _held(capacity, holders, request, cluster)
        for shape in layouts:
            devices = suitable(request.model_config, capacity, shape, request.where)
            need = shape.size.device_mb
            able = tuple(d for d in devices if d.available_mb + held.get(d.index, 0) >= need)
            sets = device_sets(able, shape.devices, mixed=request.model_config.mixed_devices)
            if (holders or capacity.reservations) and next(sets, None) is not None:
                return Wait(holders, f"room on {capacity.node.name} is in use or on its way")
    return None


def _about_to_answer(capacity: NodeCapacity, harness: str, now: float) -> str | None:
    """Why a node that does not answer now may do so any moment; None when it does, or is not expected to."""
    node = capacity.node
    if node.state is NodeState.CONNECTING:
        return f"node {node.name} has not answered yet"
    lately = 0 <= now - node.seen_at < LOST_FOR_S + node.stopping_s
    if node.state is NodeState.UNREACHABLE and lately and harness in node.harnesses:
        return f"node {node.name} answered until a moment ago"
    return None


def _held(
    capacity: NodeCapacity,
    holders: Sequence[InstanceId],
    request: PlacementRequest,
    cluster: ClusterState,
) -> Mapping[int, int]:
    """MiB by device that loads under way take, moving instances hold, and others could give up besides."""
    held: dict[int, int] = {}
    for reservation in capacity.reservations:
        for index in reservation.devices:
            held[index] = held.get(index, 0) + reservation.device_mb
    for i in capacity.instances:
        if i.id in holders or (request.may_evict and _may_move(i, request, cluster)):
            for index, mb in frees(i).items():
                held[index] = held.get(index, 0) + mb
    return held


def _is_moving(instance: InstanceView, capacity: NodeCapacity, request: PlacementRequest) -> bool:
    """Whether its memory may come free, or become evictable, without anything being decided now."""
    if not request.may_evict:
        return instance.state in {InstanceState.DRAINING, InstanceState.STOPPING}
    return instance.id in capacity.moving or (instance.id in request.spared and not instance.pinned)


def _may_move(instance: InstanceView, request: PlacementRequest, cluster: ClusterState) -> bool:
    stats = cluster.stats.get(instance.model, UNKNOWN)
    return not instance.pinned and instance.model != request.model_config.id and not stats.keep


def decide(
    request: PlacementRequest,
    cluster: ClusterState,
    policy: Policy,
    failures: FailureBackoff,
    now: float,
    *,
    forgiven: bool = False,
) -> Plan:
    """What to do for a wish.

    Args:
        request: for what.
        cluster: the fleet, and what is decided about it.
        policy: the operator's choices.
        failures: what went wrong lately.
        now: monotonic seconds.
        forgiven: as an operator wishes it, who forgives what engines did.
    """
    model = request.model_config.id
    avoid = request.avoid.union(failures.avoided(model, now))
    spared = frozenset(i for i, until in failures.spared.items() if now < until)
    request = replace(request, spared=spared, avoid=avoid)
    if forgiven:
        return plan(request, cluster, policy)
    request = replace(request, avoid=avoid.union(failures.unable(model, now)))
    decided = plan(request, cluster, policy)
    crashed = failures.crashed(model, now)
    if not isinstance(decided, Load) or decided.node not in crashed:
        return decided
    # Elsewhere, where that costs nobody anything, if an engine failed there: another host may be sound.
    other = plan(replace(request, avoid=request.avoid | crashed, may_evict=False), cluster, policy)
    return other if isinstance(other, Load) else decided


def dry_run(
    request: PlacementRequest,
    cluster: ClusterState,
    policy: Policy,
    failures: FailureBackoff,
    now: float,
    *,
    force: bool = False,
) -> Plan:
    """What would become of a wish that somebody had now; see `decide`, and `Ask.insists`."""
    model = request.model_config.id
    failure = None if force else failures.failed_lately(model, now)
    if failure is not None:
        return Wait((), f"its last load failed: {failure.reason}")
    found = decide(request, cluster, policy, failures, now, forgiven=force)
    if isinstance(found, Impossible) and (resting := failures.avoided(model, now)):
        nodes = ", ".join(sorted(resting))
        return Wait((), f"{nodes} refused or lost it a moment ago, and is asked again soon")
    return found
