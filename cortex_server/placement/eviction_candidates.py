"""Who may be evicted for whom."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop
from itertools import combinations
from operator import itemgetter

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_server.placement.capacity import DeviceCapacity, NodeCapacity, frees, is_serving
from cortex_server.placement.eviction import (
    UNKNOWN,
    EvictionCandidate,
    EvictionCost,
    EvictionSet,
    ModelStats,
    cheapest,
    eviction_cost,
    minimum_cost,
    together,
)
from cortex_server.placement.fit import Shape, suitable
from cortex_server.placement.policy import Policy, Strategy
from cortex_server.placement.state import ClusterState, PlacementRequest

SETTLED, YOUNG, BUSY, ANY = range(4)
"""Tiers of who may go: idle and settled instances; idle ones that were loaded lately too; busy settled ones too; and
at last busy ones that were loaded lately. The last comes late, or models that are all busy would take turns faster
than they load."""

NEVER = float("inf")


class EvictionRules:
    """Who may be evicted for a wish at a tier.

    Args:
        world: what there is.
        policy: of the operator.
        wish: for whom.
        tier: SETTLED, YOUNG, BUSY or ANY.
    """

    def __init__(
        self, cluster: ClusterState, policy: Policy, request: PlacementRequest, tier: int
    ) -> None:
        self.policy = policy
        self.request = request
        self._cluster = cluster
        self._model = ModelId(request.model_config.id)
        self._tier = tier
        self._ready: dict[ModelId, int] = {}

    def within_reach(self, capacities: Iterable[NodeCapacity], shape: Shape) -> list[NodeCapacity]:
        """Nodes that could have the room at all with everybody gone who may go at this tier."""
        kind, last, need = shape.kind, shape.devices - 1, shape.size.device_mb
        busy = self._tier >= BUSY
        found: list[NodeCapacity] = []
        for capacity in capacities:
            reach = (capacity.ready_reach if busy else capacity.idle_reach).get(kind, ())
            if len(reach) > last and reach[last] >= need:
                found.append(capacity)
        return found

    def by_bound(
        self, capacities: Sequence[NodeCapacity], shape: Shape
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        """Each node after a worth that no set of victims there falls short of, the least first.

        Most are never asked for, so what can be left undone until then is.
        """
        if self._tier >= BUSY:
            for capacity in capacities:
                yield (), capacity
        elif self.policy.strategy is Strategy.LRU:
            yield from self._by_last_use(capacities, shape)
        else:
            yield from self._by_least_model(capacities)

    def _by_last_use(
        self, capacities: Sequence[NodeCapacity], shape: Shape
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        asked = (shape.kind, shape.devices, shape.size.device_mb)
        bounds = [
            (
                _find_latest(capacity, *asked)
                if (known := capacity.latest.get(asked)) is None
                else known,
                at,
            )
            for at, capacity in enumerate(capacities)
        ]
        heapify(bounds)
        while bounds:
            bound, at = heappop(bounds)
            yield (bound,), capacities[at]

    def _by_least_model(
        self, capacities: Sequence[NodeCapacity]
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        """By the least that the idle models of a node can be worth.

        Models are gone through from the least on, some of one worth and then twice as many each time, and the nodes
        found that have them.
        """
        least = {
            m: self._least_worth(m)
            for m in frozenset[ModelId]().union(*(r.idle for r in capacities))
        }
        levels: dict[float, list[ModelId]] = {}
        for model, what in least.items():
            levels.setdefault(what, []).append(model)
        ranked = sorted(levels)
        left, begin, count = capacities, 0, 1
        while left and begin < len(ranked):
            some = frozenset(m for what in ranked[begin : begin + count] for m in levels[what])
            having = [r for r in left if not some.isdisjoint(r.idle)]
            if len(having) == len(left):
                left = ()
            elif having:
                left = [r for r in left if some.isdisjoint(r.idle)]
            if count == 1:
                found = [(ranked[begin], r) for r in having]
            else:
                found = [(min(map(least.__getitem__, some & r.idle)), r) for r in having]
                found.sort(key=itemgetter(0))
            for what, capacity in found:
                yield (what,), capacity
            begin, count = begin + count, 2 * count
        for capacity in left:
            yield (NEVER,), capacity

    def candidates(self, capacity: NodeCapacity) -> list[EvictionCandidate]:
        """Instances of the node that may go, the least worth first; not more of a model than it can spare."""
        found = [(self._worth(i), i.id, i) for i in capacity.instances if self._may_go(i)]
        found.sort(key=lambda v: v[:2])
        spare: dict[ModelId, int] = {}
        kept: list[EvictionCandidate] = []
        for what, _, i in found:
            keep = self._stats(i.model).keep
            if keep:
                left = spare.setdefault(i.model, self._ready_count(i.model) - keep)
                if left <= 0:
                    continue
                spare[i.model] = left - 1
            kept.append(EvictionCandidate(i.id, frees(i), what))
        return kept

    def _may_go(self, instance: InstanceView) -> bool:
        if instance.pinned or instance.state is not InstanceState.READY:
            return False
        if instance.model == self._model or instance.id in self.request.spared:
            return False
        if instance.in_flight and self._tier < BUSY:
            return False
        spared = self._tier == (BUSY if instance.in_flight else SETTLED)
        return not spared or not self._is_young(instance)

    def _is_young(self, instance: InstanceView) -> bool:
        took = instance.load_seconds or 0.0
        ready_for = self._cluster.now - instance.started_at - took
        return ready_for < min(took, self.policy.min_residency_s)

    def _stats(self, model: ModelId) -> ModelStats:
        return self._cluster.stats.get(model, UNKNOWN)

    def _least_worth(self, model: ModelId) -> float:
        return minimum_cost(self.policy.strategy, self._stats(model))

    def _worth(self, instance: InstanceView) -> EvictionCost:
        return eviction_cost(self.policy.strategy, instance, self._stats(instance.model))

    def _ready_count(self, model: ModelId) -> int:
        if model not in self._ready:
            self._ready[model] = sum(
                i.model == model and is_serving(capacity, i)
                for capacity in self._cluster.capacities
                if model in capacity.models
                for i in capacity.instances
            )
        return self._ready[model]


def _find_latest(capacity: NodeCapacity, kind: DeviceKind, count: int, need_mb: int) -> float:
    """When the last idle instance was used that has to go, at best, oldest first on each device; remembered."""
    found: list[float] = []
    for device in capacity.devices:
        if device.kind is not kind:
            continue
        lack = need_mb - device.available_mb
        freed, used = capacity.stairs.get(device.index, ((), ()))
        if lack <= 0:
            found.append(float("-inf"))
        elif (at := bisect_left(freed, lack)) < len(freed):
            found.append(used[at])
    found.sort()
    latest = found[count - 1] if len(found) >= count else NEVER
    capacity.latest[kind, count, need_mb] = latest
    return latest


MOST_NODES = 16
"""Nodes that are searched exactly, the most promising first. A fleet of so many is searched whole; in a larger one
the least loss is that of the nodes with the least bounds."""

FURTHER_DEVICES = 2
"""Where instances stand on several devices, sets are drawn from so many devices more than are needed, cheapest
first."""


@dataclass(frozen=True, slots=True)
class EvictionPlace:
    """A set of devices, and who has to go from them."""

    capacity: NodeCapacity
    devices: tuple[DeviceCapacity, ...]
    shape: Shape
    choice: EvictionSet


def cheapest_place(
    shape: Shape, capacities: Iterable[NodeCapacity], guard: EvictionRules
) -> EvictionPlace | None:
    """The least loss over the nodes; they are tried by a lower bound of it, so that few are searched."""
    best: EvictionPlace | None = None
    searched = 0
    for bound, capacity in guard.by_bound(guard.within_reach(capacities, shape), shape):
        if searched == MOST_NODES or (best is not None and bound > best.choice.cost):
            break
        searched += 1
        best = _cheaper_on(capacity, shape, guard, best) or best
        if best is None:
            searched = 0  # nodes that turn out to have nobody who may go do not count
    return best


def _cheaper_on(
    capacity: NodeCapacity, shape: Shape, guard: EvictionRules, best: EvictionPlace | None
) -> EvictionPlace | None:
    """The least loss on one node, if it is less than the best so far."""
    candidates = guard.candidates(capacity)
    on: dict[int, list[EvictionCandidate]] = {}
    for candidate in candidates:
        for index in candidate.frees:
            on.setdefault(index, []).append(candidate)
    strategy, need = guard.policy.strategy, shape.size.device_mb
    summed = shape.devices > 1 and strategy is Strategy.COST
    if best is not None and summed and _least_sum(capacity, shape, on) > best.choice.cost[0]:
        return None
    found: EvictionPlace | None = None
    for chosen, known in _sets(capacity, shape, on, guard):
        there = on.get(chosen[0].index, []) if len(chosen) == 1 else candidates
        if best is not None and there and there[0].cost > best.choice.cost:
            continue
        missing = {d.index: need - d.available_mb for d in chosen}
        choice = known or cheapest(strategy, there, missing)
        if choice is not None and (best is None or choice.cost < best.choice.cost):
            best = found = EvictionPlace(capacity, chosen, shape, choice)
    return found


def _least_sum(
    capacity: NodeCapacity, shape: Shape, on: Mapping[int, Sequence[EvictionCandidate]]
) -> float:
    """No victims on this node are worth less in sum: every device that lacks room needs one, or a share of one."""
    floors: list[float] = []
    for device in capacity.devices:
        if device.kind is not shape.kind:
            continue
        if device.available_mb >= shape.size.device_mb:
            floors.append(0.0)
        elif there := on.get(device.index):
            floors.append(min(v.cost[0] / len(v.frees) for v in there))
    return sum(sorted(floors)[: shape.devices])


def _sets(
    capacity: NodeCapacity,
    shape: Shape,
    on: Mapping[int, Sequence[EvictionCandidate]],
    guard: EvictionRules,
) -> Iterator[tuple[tuple[DeviceCapacity, ...], EvictionSet | None]]:
    """Sets of devices worth comparing, with what is lost where that is known: all single ones, or the best by type.

    Where every victim stands on one device, the cheapest devices together are the cheapest set.
    """
    model_config = guard.request.model_config
    devices = suitable(model_config, capacity, shape, guard.request.where)
    if shape.devices == 1:
        yield from (((d,), None) for d in devices)
        return
    groups: dict[str, list[tuple[EvictionSet, DeviceCapacity]]] = {}
    need = shape.size.device_mb
    for d in devices:
        missing = {d.index: need - d.available_mb}
        choice = cheapest(guard.policy.strategy, on.get(d.index, ()), missing)
        if choice is not None:
            groups.setdefault("" if model_config.mixed_devices else d.name, []).append((choice, d))
    shared = any(len(v.frees) > 1 for there in on.values() for v in there)
    for group in groups.values():
        group.sort(key=lambda found: (found[0].cost, found[1].index))
        if shared:
            cheap = [d for _, d in group[: shape.devices + FURTHER_DEVICES]]
            yield from ((s, None) for s in combinations(_ordered(cheap), shape.devices))
        elif len(group) >= shape.devices:
            best = group[: shape.devices]
            choice = together(guard.policy.strategy, (c for c, _ in best))
            yield _ordered(d for _, d in best), choice


def _ordered(devices: Iterable[DeviceCapacity]) -> tuple[DeviceCapacity, ...]:
    return tuple(sorted(devices, key=lambda d: d.index))
