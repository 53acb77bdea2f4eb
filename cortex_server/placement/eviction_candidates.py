"""Which instances may be evicted for a request, and the device set whose evictions cost the least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop
from itertools import combinations
from operator import itemgetter

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_server.placement.capacity import (
    DeviceCapacity,
    NodeCapacity,
    is_serving,
)
from cortex_server.placement.eviction import (
    DEFAULT_STATS,
    EvictionCandidate,
    EvictionCost,
    EvictionSet,
    ModelStats,
    cheapest_set,
    eviction_cost,
    merge_sets,
    minimum_cost,
)
from cortex_server.placement.fit import Shape, eligible_devices
from cortex_server.placement.policy import Policy, Strategy
from cortex_server.placement.state import ClusterState, PlacementRequest

UNBOUNDED = float("inf")
"""Lower bound of the cost on a node where no eviction suffices."""

MAX_SEARCHED_NODES = 16
"""Nodes that are searched exactly, lowest bound first. A fleet of this size is searched completely; in a larger one the
result is the lowest cost among the nodes with the lowest bounds."""

EXTRA_DEVICES = 2
"""Where instances span several devices, sets are drawn from this many devices more than needed, cheapest first."""


class EvictionTier(IntEnum):
    """Which instances may be evicted; each tier includes those before it.

    The last comes late, or models that are all busy would evict each other faster than they load.

    Attributes:
        IDLE: idle instances past their minimum residency.
        IDLE_RECENT: idle instances that were loaded recently.
        BUSY: busy instances past their minimum residency.
        BUSY_RECENT: busy instances that were loaded recently.
    """

    IDLE = 0
    IDLE_RECENT = 1
    BUSY = 2
    BUSY_RECENT = 3


class EvictionRules:
    """Decides which instances may be evicted for a request at a tier.

    Args:
        cluster: the state of the cluster.
        policy: the operator's settings.
        request: the model to be placed.
        tier: which instances may be evicted.
    """

    def __init__(
        self, cluster: ClusterState, policy: Policy, request: PlacementRequest, tier: EvictionTier
    ) -> None:
        self.policy = policy
        self.request = request
        self._cluster = cluster
        self._model = ModelId(request.model_config.id)
        self._tier = tier
        self._ready_counts: dict[ModelId, int] = {}

    def feasible_nodes(
        self, capacities: Iterable[NodeCapacity], shape: Shape
    ) -> list[NodeCapacity]:
        """Return the nodes that would have enough memory if every instance evictable at this tier were gone."""
        kind, last_index, least_mb = shape.kind, shape.devices - 1, shape.least_mb
        busy = self._tier >= EvictionTier.BUSY
        feasible: list[NodeCapacity] = []
        for capacity in capacities:
            available = (
                capacity.available_without_ready if busy else capacity.available_without_idle
            ).get(kind, ())
            enough_mb = least_mb - capacity.headroom_mb
            if len(available) > last_index and available[last_index] >= enough_mb:
                feasible.append(capacity)
        return feasible

    def nodes_by_bound(
        self, capacities: Sequence[NodeCapacity], shape: Shape
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        """Yield each node with a lower bound of its eviction cost, lowest first.

        Most callers stop early, so the order is computed lazily.
        """
        if self._tier >= EvictionTier.BUSY:
            for capacity in capacities:
                yield (), capacity
        elif self.policy.strategy is Strategy.LRU:
            yield from self._nodes_by_last_use(capacities, shape)
        else:
            yield from self._nodes_by_cheapest_model(capacities)

    def _nodes_by_last_use(
        self, capacities: Sequence[NodeCapacity], shape: Shape
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        key = (shape.kind, shape.devices, shape.least_mb)
        bounds = [
            (
                _last_use_bound(capacity, *key)
                if (bound := capacity.last_use_bounds.get(key)) is None
                else bound,
                index,
            )
            for index, capacity in enumerate(capacities)
        ]
        heapify(bounds)
        while bounds:
            bound, index = heappop(bounds)
            yield (bound,), capacities[index]

    def _nodes_by_cheapest_model(
        self, capacities: Sequence[NodeCapacity]
    ) -> Iterator[tuple[EvictionCost, NodeCapacity]]:
        """Order nodes by the lowest cost that their idle models can have.

        Models are visited in order of cost, in batches that double in size, and the nodes that have one of them are
        yielded.
        """
        model_costs = {
            model: self._minimum_cost(model)
            for model in frozenset[ModelId]().union(
                *(capacity.idle_models for capacity in capacities)
            )
        }
        levels: dict[float, list[ModelId]] = {}
        for model, cost in model_costs.items():
            levels.setdefault(cost, []).append(model)
        ranked = sorted(levels)
        remaining, begin, count = capacities, 0, 1
        while remaining and begin < len(ranked):
            batch = frozenset(
                model for cost in ranked[begin : begin + count] for model in levels[cost]
            )
            matching = [
                capacity for capacity in remaining if not batch.isdisjoint(capacity.idle_models)
            ]
            if len(matching) == len(remaining):
                remaining = ()
            elif matching:
                remaining = [
                    capacity for capacity in remaining if batch.isdisjoint(capacity.idle_models)
                ]
            if count == 1:
                costed = [(ranked[begin], capacity) for capacity in matching]
            else:
                costed = [
                    (min(map(model_costs.__getitem__, batch & capacity.idle_models)), capacity)
                    for capacity in matching
                ]
                costed.sort(key=itemgetter(0))
            for cost, capacity in costed:
                yield (cost,), capacity
            begin, count = begin + count, 2 * count
        for capacity in remaining:
            yield (UNBOUNDED,), capacity

    def candidates(self, capacity: NodeCapacity) -> list[EvictionCandidate]:
        """Return the evictable instances of a node, lowest cost first, leaving each model its `replicas.min`."""
        evictable = [(self._cost(i), i.id, i) for i in capacity.instances if self._is_evictable(i)]
        evictable.sort(key=lambda v: v[:2])
        spare_by_model: dict[ModelId, int] = {}
        candidates: list[EvictionCandidate] = []
        for cost, _, i in evictable:
            min_replicas = self._stats(i.model).min_replicas
            if min_replicas:
                spare = spare_by_model.setdefault(
                    i.model, self._ready_count(i.model) - min_replicas
                )
                if spare <= 0:
                    continue
                spare_by_model[i.model] = spare - 1
            candidates.append(EvictionCandidate(i.id, capacity.memory_of(i), cost))
        return candidates

    def _is_evictable(self, instance: InstanceView) -> bool:
        if instance.pinned or instance.state is not InstanceState.READY:
            return False
        if instance.model == self._model or instance.id in self.request.protected:
            return False
        if instance.in_flight and self._tier < EvictionTier.BUSY:
            return False
        recent_excluded = self._tier is (
            EvictionTier.BUSY if instance.in_flight else EvictionTier.IDLE
        )
        return not recent_excluded or not self._is_recent(instance)

    def _is_recent(self, instance: InstanceView) -> bool:
        load_s = instance.load_seconds or 0.0
        ready_s = self._cluster.now - instance.started_at - load_s
        return ready_s < min(load_s, self.policy.min_residency_s)

    def _stats(self, model: ModelId) -> ModelStats:
        return self._cluster.stats.get(model, DEFAULT_STATS)

    def _minimum_cost(self, model: ModelId) -> float:
        return minimum_cost(self.policy.strategy, self._stats(model))

    def _cost(self, instance: InstanceView) -> EvictionCost:
        return eviction_cost(self.policy.strategy, instance, self._stats(instance.model))

    def _ready_count(self, model: ModelId) -> int:
        if model not in self._ready_counts:
            self._ready_counts[model] = sum(
                i.model == model and is_serving(capacity, i)
                for capacity in self._cluster.capacities
                if model in capacity.models
                for i in capacity.instances
            )
        return self._ready_counts[model]


def _last_use_bound(capacity: NodeCapacity, kind: DeviceKind, count: int, needed_mb: int) -> float:
    """Return the latest `last_used` that must be evicted, evicting least recently used first on each device; cached."""
    bounds: list[float] = []
    for device in capacity.devices:
        if device.kind is not kind:
            continue
        missing_mb = needed_mb - capacity.headroom_mb - device.available_mb
        freed, last_used = capacity.idle_by_age.get(device.index, ((), ()))
        if missing_mb <= 0:
            bounds.append(float("-inf"))
        elif (index := bisect_left(freed, missing_mb)) < len(freed):
            bounds.append(last_used[index])
    bounds.sort()
    bound = bounds[count - 1] if len(bounds) >= count else UNBOUNDED
    capacity.last_use_bounds[kind, count, needed_mb] = bound
    return bound


@dataclass(frozen=True, slots=True)
class EvictionPlace:
    """A set of devices, and the instances to evict from them.

    Attributes:
        capacity: the node.
        devices: the devices.
        shape: the layout to be placed there.
        choice: the instances to evict.
    """

    capacity: NodeCapacity
    devices: tuple[DeviceCapacity, ...]
    shape: Shape
    choice: EvictionSet


def cheapest_place(
    shape: Shape, capacities: Iterable[NodeCapacity], rules: EvictionRules
) -> EvictionPlace | None:
    """Find the place with the lowest eviction cost; nodes are searched by a lower bound, so that few need to be."""
    best: EvictionPlace | None = None
    searched = 0
    for bound, capacity in rules.nodes_by_bound(rules.feasible_nodes(capacities, shape), shape):
        if searched == MAX_SEARCHED_NODES or (best is not None and bound > best.choice.cost):
            break
        searched += 1
        best = _cheaper_place_on(capacity, shape, rules, best) or best
        if best is None:
            searched = 0  # nodes without a sufficient set do not count
    return best


def _cheaper_place_on(
    capacity: NodeCapacity, shape: Shape, rules: EvictionRules, best: EvictionPlace | None
) -> EvictionPlace | None:
    """Find the cheapest place on one node, if it costs less than the best so far."""
    candidates = rules.candidates(capacity)
    by_device: dict[int, list[EvictionCandidate]] = {}
    for candidate in candidates:
        for index in candidate.freed_mb:
            by_device.setdefault(index, []).append(candidate)
    strategy = rules.policy.strategy
    is_summed = shape.devices > 1 and strategy is Strategy.COST
    if (
        best is not None
        and is_summed
        and _sum_bound(capacity, shape, by_device) > best.choice.cost[0]
    ):
        return None
    place: EvictionPlace | None = None
    for devices, known_set in _device_sets(capacity, shape, by_device, rules):
        local = by_device.get(devices[0].index, []) if len(devices) == 1 else candidates
        if best is not None and local and local[0].cost > best.choice.cost:
            continue
        missing = {d.index: shape.needed_mb(d) - d.available_mb for d in devices}
        choice = known_set or cheapest_set(strategy, local, missing)
        if choice is not None and (best is None or choice.cost < best.choice.cost):
            best = place = EvictionPlace(capacity, devices, shape, choice)
    return place


def _sum_bound(
    capacity: NodeCapacity, shape: Shape, by_device: Mapping[int, Sequence[EvictionCandidate]]
) -> float:
    """Return a lower bound of the summed cost on a node.

    Each device that lacks memory needs a candidate, or a share of one.
    """
    bounds: list[float] = []
    for device in capacity.devices:
        if device.kind is not shape.kind:
            continue
        if device.available_mb >= shape.needed_mb(device):
            bounds.append(0.0)
        elif local := by_device.get(device.index):
            bounds.append(min(v.cost[0] / len(v.freed_mb) for v in local))
    return sum(sorted(bounds)[: shape.devices])


def _device_sets(
    capacity: NodeCapacity,
    shape: Shape,
    by_device: Mapping[int, Sequence[EvictionCandidate]],
    rules: EvictionRules,
) -> Iterator[tuple[tuple[DeviceCapacity, ...], EvictionSet | None]]:
    """Yield device sets to compare, with their evictions where known: all single devices, or the best set of each type.

    Where every candidate is on a single device, the cheapest devices together are the cheapest set.
    """
    model_config = rules.request.model_config
    devices = eligible_devices(model_config, capacity, shape, rules.request.constraints)
    if shape.devices == 1:
        yield from (((d,), None) for d in devices)
        return
    groups: dict[str, list[tuple[EvictionSet, DeviceCapacity]]] = {}
    for d in devices:
        missing = {d.index: shape.needed_mb(d) - d.available_mb}
        choice = cheapest_set(rules.policy.strategy, by_device.get(d.index, ()), missing)
        if choice is not None:
            groups.setdefault("" if model_config.mixed_devices else d.name, []).append((choice, d))
    spans_devices = any(len(v.freed_mb) > 1 for local in by_device.values() for v in local)
    for group in groups.values():
        group.sort(key=lambda entry: (entry[0].cost, entry[1].index))
        if spans_devices:
            cheap = [d for _, d in group[: shape.devices + EXTRA_DEVICES]]
            yield from ((s, None) for s in combinations(_by_index(cheap), shape.devices))
        elif len(group) >= shape.devices:
            best = group[: shape.devices]
            choice = merge_sets(rules.policy.strategy, (chosen for chosen, _ in best))
            yield _by_index(d for _, d in best), choice


def _by_index(devices: Iterable[DeviceCapacity]) -> tuple[DeviceCapacity, ...]:
    return tuple(sorted(devices, key=lambda d: d.index))
