"""Which instances to evict, so that the cost is lowest.

A strategy assigns each candidate a cost. Costs of `lru` and `priority` have only an order, and sets are compared by
their most costly member, then the next, and so on: a recently used instance is never evicted where an older one
suffices. Costs of `cost` are expected seconds of cold start per second, and sets are compared by their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.placement.policy import Strategy

MAX_EXACT_CANDIDATES = 12
"""With up to this many candidates, `cost` searches all sets. Beyond, it is greedy: it adds the candidate that frees the
most per cost until the memory suffices, then drops those not needed; on one device within twice the optimum."""

MAX_UNSEEDED_CANDIDATES = 4
"""With up to this many candidates, searching all sets is faster than finding a good first bound."""

EvictionCost = tuple[float, ...]
"""What is lost with an instance or a set of them; lower is evicted first. Comparable within one strategy."""

MIN_RATE = 1e-6
"""Requests per second assumed for a model without recent requests, so that load time still decides."""


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Statistics of a model.

    Attributes:
        priority: priority in its model config.
        reload_s: expected seconds to load it again.
        rate: recent requests per second; decays, so that a model that was popular yesterday ages.
        min_replicas: instances that must remain (`replicas.min`).
    """

    priority: int = 0
    reload_s: float = 10.0
    rate: float = 0.0
    min_replicas: int = 0


DEFAULT_STATS = ModelStats()


class StatsByModel(Protocol):
    """Statistics by model: a mapping, or an object that computes them lazily, because most are never read."""

    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        """Return the statistics of a model."""
        ...


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """An instance that may be evicted.

    Attributes:
        id: the instance.
        freed_mb: MiB freed, by device index.
        cost: what is lost with it.
    """

    id: InstanceId
    freed_mb: Mapping[int, int]
    cost: EvictionCost


@dataclass(frozen=True, slots=True)
class EvictionSet:
    """Instances to evict.

    Attributes:
        candidates: the instances, lowest cost first.
        cost: what is lost with all of them.
    """

    candidates: tuple[EvictionCandidate, ...]
    cost: EvictionCost


def eviction_cost(strategy: Strategy, instance: InstanceView, stats: ModelStats) -> EvictionCost:
    """Return the cost of evicting an instance."""
    match strategy:
        case Strategy.LRU:
            return (instance.last_used,)
        case Strategy.PRIORITY:
            return (float(stats.priority), instance.last_used)
        case Strategy.COST:
            return (stats.reload_s * max(stats.rate, MIN_RATE),)


def minimum_cost(strategy: Strategy, stats: ModelStats) -> float:
    """Return a lower bound for the first element of the cost of any instance of a model with these statistics."""
    match strategy:
        case Strategy.LRU:
            return float("-inf")
        case Strategy.PRIORITY:
            return float(stats.priority)
        case Strategy.COST:
            return stats.reload_s * max(stats.rate, MIN_RATE)


def cheapest_set(
    strategy: Strategy, candidates: Sequence[EvictionCandidate], missing: Mapping[int, int]
) -> EvictionSet | None:
    """Find the set of candidates with the lowest cost that frees the missing memory.

    Args:
        strategy: the strategy that the costs come from.
        candidates: instances that may be evicted.
        missing: MiB missing on each device; entries of 0 or less are met already.

    Returns:
        None when all candidates together free too little.
    """
    needed = {device: mb for device, mb in missing.items() if mb > 0}
    useful = [v for v in candidates if any(v.freed_mb.get(device, 0) > 0 for device in needed)]
    useful.sort(key=_sort_key)
    if not _suffices(useful, needed):
        return None
    if len(useful) == 1:
        return EvictionSet(tuple(useful), useful[0].cost)
    if strategy is not Strategy.COST:
        chosen = _drop_unneeded(useful, needed)
        return EvictionSet(tuple(chosen), tuple(x for v in reversed(chosen) for x in v.cost))
    chosen = (
        _minimum_sum(useful, needed)
        if len(useful) <= MAX_EXACT_CANDIDATES
        else _greedy_cover(useful, needed)
    )
    return EvictionSet(tuple(chosen), (_total_cost(chosen),))


def merge_sets(strategy: Strategy, sets: Iterable[EvictionSet]) -> EvictionSet:
    """Merge the cheapest sets of devices that share no candidate; the result is the cheapest for all of them."""
    merged = sorted((v for c in sets for v in c.candidates), key=_sort_key)
    if strategy is Strategy.COST:
        return EvictionSet(tuple(merged), (_total_cost(merged),))
    return EvictionSet(tuple(merged), tuple(x for v in reversed(merged) for x in v.cost))


def _sort_key(candidate: EvictionCandidate) -> tuple[EvictionCost, int, str]:
    """Sort by cost; of equal costs, the candidate that frees more comes first, so that fewer are evicted."""
    return candidate.cost, -sum(candidate.freed_mb.values()), candidate.id


def _suffices(candidates: Sequence[EvictionCandidate], needed: Mapping[int, int]) -> bool:
    return all(sum(v.freed_mb.get(d, 0) for v in candidates) >= mb for d, mb in needed.items())


def _total_cost(candidates: Sequence[EvictionCandidate]) -> float:
    return sum(v.cost[0] for v in candidates)


def _drop_unneeded(
    candidates: list[EvictionCandidate], needed: Mapping[int, int]
) -> list[EvictionCandidate]:
    """Drop each candidate that is not needed, most costly first.

    Exact for totally ordered costs: whether a set suffices is monotone, so keeping the most costly candidate only where
    all others do not suffice yields the set whose most costly member is lowest, then the next, and so on.
    """
    kept = list(candidates)
    for candidate in reversed(candidates):
        rest = [v for v in kept if v is not candidate]
        if _suffices(rest, needed):
            kept = rest
    return kept


def _minimum_sum(
    candidates: list[EvictionCandidate], needed: Mapping[int, int]
) -> list[EvictionCandidate]:
    """Find the sufficient set with the lowest sum of costs, by branch and bound."""
    best = (
        _greedy_cover(candidates, needed)
        if len(candidates) > MAX_UNSEEDED_CANDIDATES
        else candidates
    )
    best_sum = _total_cost(best) if len(candidates) > MAX_UNSEEDED_CANDIDATES else inf

    def search(
        index: int, chosen: list[EvictionCandidate], cost: float, missing: Mapping[int, int]
    ) -> None:
        nonlocal best, best_sum
        if cost >= best_sum:
            return
        if not missing:
            best, best_sum = list(chosen), cost
            return
        if not _suffices(candidates[index:], missing):
            return
        candidate = candidates[index]
        remaining = {d: mb - candidate.freed_mb.get(d, 0) for d, mb in missing.items()}
        search(
            index + 1,
            [*chosen, candidate],
            cost + candidate.cost[0],
            {d: mb for d, mb in remaining.items() if mb > 0},
        )
        search(index + 1, chosen, cost, missing)

    search(0, [], 0.0, needed)
    return _drop_unneeded(best, needed)


def _greedy_cover(
    candidates: list[EvictionCandidate], needed: Mapping[int, int]
) -> list[EvictionCandidate]:
    """Cover greedily, lowest cost per missing MiB first, and compare every candidate that would complete the cover.

    Csirik, Frenk, Labbé and Zhang (1991) show a factor of 2 for the one-dimensional case.
    """
    missing = dict(needed)
    pool = list(candidates)
    chosen: list[EvictionCandidate] = []
    best: list[EvictionCandidate] | None = None
    while pool and missing:

        def useful(candidate: EvictionCandidate) -> int:
            return sum(min(candidate.freed_mb.get(d, 0), mb) for d, mb in missing.items())  # noqa: B023 - called within the iteration

        pool = [v for v in pool if useful(v) > 0]
        for candidate in pool:
            if all(candidate.freed_mb.get(d, 0) >= mb for d, mb in missing.items()):
                complete = [*chosen, candidate]
                if best is None or _total_cost(complete) < _total_cost(best):
                    best = complete
        partial = [v for v in pool if any(v.freed_mb.get(d, 0) < mb for d, mb in missing.items())]
        if not partial:
            break
        added = min(partial, key=lambda v: (v.cost[0] / useful(v), v.id))
        pool.remove(added)
        chosen.append(added)
        missing = {d: mb - added.freed_mb.get(d, 0) for d, mb in missing.items()}
        missing = {d: mb for d, mb in missing.items() if mb > 0}
    if not missing and (best is None or _total_cost(chosen) < _total_cost(best)):
        best = chosen
    assert best is not None, "the caller checked that all candidates together suffice"
    return _drop_unneeded(sorted(best, key=lambda v: (v.cost, v.id)), needed)
