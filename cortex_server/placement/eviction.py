"""Which instances make room, so that the least is lost.

A strategy gives each candidate a worth. Under `lru` and `priority` the worths only have an order, and sets are
compared by their worthiest member, then the next, and so on: nothing recent goes where something older does.
Under `cost` worths are seconds of cold start expected per second, and sets are compared by their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.placement.policy import Strategy

EXACT_UP_TO = 12
"""Candidates up to which `cost` searches all sets. Beyond, it adds the candidate that frees most for its worth
until there is room, then drops what turned out not to be needed: on one device within twice the least."""

FEW = 4
"""Candidates up to which all sets are gone through sooner than a good one is found to begin with."""

EvictionCost = tuple[float, ...]
"""What is lost with a victim or a set of them; smaller goes first. Comparable within one strategy."""

LEAST_RATE = 1e-6
"""Requests a second that a model nobody asked for lately counts with, so that memory and load time still decide."""


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What the gateway knows of a model besides its instances.

    Attributes:
        priority: of its profile.
        reload_s: seconds that loading it again is expected to take.
        rate: requests a second lately; decays, so that yesterday's favourite ages.
        keep: instances that must stay (`replicas.min`).
    """

    priority: int = 0
    reload_s: float = 10.0
    rate: float = 0.0
    keep: int = 0


UNKNOWN = ModelStats()


class StatsByModel(Protocol):
    """Standings by model: a mapping, or what works one out when asked; most are never asked for."""

    def get(self, model: ModelId, default: ModelStats, /) -> ModelStats:
        """The standing of a model."""
        ...


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """An instance that may be evicted.

    Attributes:
        frees: MiB by device index.
        worth: what is lost with it.
    """

    id: InstanceId
    frees: Mapping[int, int]
    cost: EvictionCost


@dataclass(frozen=True, slots=True)
class EvictionSet:
    """A set of victims, least worth first, and what is lost with it."""

    candidates: tuple[EvictionCandidate, ...]
    cost: EvictionCost


def eviction_cost(strategy: Strategy, instance: InstanceView, stats: ModelStats) -> EvictionCost:
    """What is lost when this instance goes."""
    match strategy:
        case Strategy.LRU:
            return (instance.last_used,)
        case Strategy.PRIORITY:
            return (float(stats.priority), instance.last_used)
        case Strategy.COST:
            return (stats.reload_s * max(stats.rate, LEAST_RATE),)


def minimum_cost(strategy: Strategy, stats: ModelStats) -> float:
    """No instance of a model that stands so has a worth that begins with less."""
    match strategy:
        case Strategy.LRU:
            return float("-inf")
        case Strategy.PRIORITY:
            return float(stats.priority)
        case Strategy.COST:
            return stats.reload_s * max(stats.rate, LEAST_RATE)


def cheapest(
    strategy: Strategy, candidates: Sequence[EvictionCandidate], missing: Mapping[int, int]
) -> EvictionSet | None:
    """The set of candidates worth least that frees what is missing.

    Args:
        strategy: that gave the candidates their worths.
        candidates: instances that may go.
        missing: MiB that are missing on each device; entries of 0 or less are met already.

    Returns:
        None when all candidates together free too little.
    """
    lack = {device: mb for device, mb in missing.items() if mb > 0}
    useful = [v for v in candidates if any(v.frees.get(device, 0) > 0 for device in lack)]
    useful.sort(key=_least_first)
    if not _enough(useful, lack):
        return None
    if len(useful) == 1:
        return EvictionSet(tuple(useful), useful[0].cost)
    if strategy is not Strategy.COST:
        found = _without_needless(useful, lack)
        return EvictionSet(tuple(found), tuple(x for v in reversed(found) for x in v.cost))
    found = _least_sum(useful, lack) if len(useful) <= EXACT_UP_TO else _by_density(useful, lack)
    return EvictionSet(tuple(found), (_sum(found),))


def together(strategy: Strategy, choices: Iterable[EvictionSet]) -> EvictionSet:
    """Choices for devices that share no victim, as one: what is least on each is least on all of them."""
    found = sorted((v for c in choices for v in c.candidates), key=_least_first)
    if strategy is Strategy.COST:
        return EvictionSet(tuple(found), (_sum(found),))
    return EvictionSet(tuple(found), tuple(x for v in reversed(found) for x in v.cost))


def _least_first(candidate: EvictionCandidate) -> tuple[EvictionCost, int, str]:
    """Of equals, the one that frees more counts as worth less, so that fewer go."""
    return candidate.cost, -sum(candidate.frees.values()), candidate.id


def _enough(candidates: Sequence[EvictionCandidate], lack: Mapping[int, int]) -> bool:
    return all(sum(v.frees.get(d, 0) for v in candidates) >= mb for d, mb in lack.items())


def _sum(candidates: Sequence[EvictionCandidate]) -> float:
    return sum(v.cost[0] for v in candidates)


def _without_needless(
    candidates: list[EvictionCandidate], lack: Mapping[int, int]
) -> list[EvictionCandidate]:
    """Drop each victim that is not needed, worthiest first.

    For a strict order of worths this is exact: whether a set suffices is monotone, so keeping the worthiest only
    where all the others do not suffice gives the set whose worthiest member is least, then the next, and so on.
    """
    kept = list(candidates)
    for candidate in reversed(candidates):
        rest = [v for v in kept if v is not candidate]
        if _enough(rest, lack):
            kept = rest
    return kept


def _least_sum(
    candidates: list[EvictionCandidate], lack: Mapping[int, int]
) -> list[EvictionCandidate]:
    """The sufficient set with the least sum, by branch and bound."""
    best = _by_density(candidates, lack) if len(candidates) > FEW else candidates
    best_sum = _sum(best) if len(candidates) > FEW else inf

    def search(
        at: int, chosen: list[EvictionCandidate], so_far: float, left: Mapping[int, int]
    ) -> None:
        nonlocal best, best_sum
        if so_far >= best_sum:
            return
        if not left:
            best, best_sum = list(chosen), so_far
            return
        if not _enough(candidates[at:], left):
            return
        candidate = candidates[at]
        after = {d: mb - candidate.frees.get(d, 0) for d, mb in left.items()}
        search(
            at + 1,
            [*chosen, candidate],
            so_far + candidate.cost[0],
            {d: mb for d, mb in after.items() if mb > 0},
        )
        search(at + 1, chosen, so_far, left)

    search(0, [], 0.0, lack)
    return _without_needless(best, lack)


def _by_density(
    candidates: list[EvictionCandidate], lack: Mapping[int, int]
) -> list[EvictionCandidate]:
    """Greedy cover: per MiB that is still missing the cheapest first; every way to close is compared.

    Csirik, Frenk, Labbe and Zhang (1991) show a factor of 2 for the one-dimensional case.
    """
    left = dict(lack)
    pool = list(candidates)
    chosen: list[EvictionCandidate] = []
    best: list[EvictionCandidate] | None = None
    while pool and left:

        def useful(candidate: EvictionCandidate) -> int:
            return sum(min(candidate.frees.get(d, 0), mb) for d, mb in left.items())  # noqa: B023 - called at once

        pool = [v for v in pool if useful(v) > 0]
        for candidate in pool:
            if all(candidate.frees.get(d, 0) >= mb for d, mb in left.items()):
                closed = [*chosen, candidate]
                if best is None or _sum(closed) < _sum(best):
                    best = closed
        going_on = [v for v in pool if any(v.frees.get(d, 0) < mb for d, mb in left.items())]
        if not going_on:
            break
        taken = min(going_on, key=lambda v: (v.cost[0] / useful(v), v.id))
        pool.remove(taken)
        chosen.append(taken)
        left = {d: mb - taken.frees.get(d, 0) for d, mb in left.items()}
        left = {d: mb for d, mb in left.items() if mb > 0}
    if not left and (best is None or _sum(chosen) < _sum(best)):
        best = chosen
    assert best is not None, "the caller has checked that all together suffice"
    return _without_needless(sorted(best, key=lambda v: (v.cost, v.id)), lack)
