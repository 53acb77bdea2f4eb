from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from placement_states import instance

from cortex_common.schema.instances import InstanceId
from cortex_server.placement.eviction import (
    MAX_EXACT_CANDIDATES,
    EvictionCandidate,
    ModelStats,
    cheapest_set,
    eviction_cost,
)
from cortex_server.placement.policy import Strategy

MISSING = st.dictionaries(st.integers(0, 2), st.integers(-50, 150), max_size=3)


@st.composite
def candidates(draw: st.DrawFn, most: int = 8) -> list[EvictionCandidate]:
    """Candidates on up to three devices."""
    frees = st.dictionaries(st.integers(0, 2), st.integers(0, 100), max_size=2)
    worths = st.integers(0, 30).map(lambda n: (float(n),))
    return [
        EvictionCandidate(InstanceId(f"v{at}"), draw(frees), draw(worths))
        for at in range(draw(st.integers(0, most)))
    ]


def suffices(chosen: tuple[EvictionCandidate, ...], missing: dict[int, int]) -> bool:
    """Return whether these candidates free all that is missing."""
    return all(
        sum(v.freed_mb.get(d, 0) for v in chosen) >= mb for d, mb in missing.items() if mb > 0
    )


def sufficient(
    candidates: list[EvictionCandidate], missing: dict[int, int]
) -> list[tuple[EvictionCandidate, ...]]:
    """Return every set of candidates that frees what is missing."""
    return [
        chosen
        for size in range(len(candidates) + 1)
        for chosen in combinations(candidates, size)
        if suffices(chosen, missing)
    ]


@given(candidates(), MISSING, st.sampled_from(Strategy))
def test_a_sufficient_set_is_found_whenever_one_exists(
    candidates: list[EvictionCandidate], missing: dict[int, int], strategy: Strategy
) -> None:
    """A set is found exactly when all candidates together free what is missing."""
    choice = cheapest_set(strategy, candidates, missing)
    assert (choice is not None) == suffices(tuple(candidates), missing)
    if choice is not None:
        assert suffices(choice.candidates, missing)
        assert len({v.id for v in choice.candidates}) == len(choice.candidates)


@given(candidates(), MISSING)
def test_lru_takes_the_set_whose_most_recent_member_is_oldest(
    candidates: list[EvictionCandidate], missing: dict[int, int]
) -> None:
    """Compared from the most recently used member down, no sufficient set is older."""
    candidates = [replace(v, cost=(float(at),)) for at, v in enumerate(candidates)]
    choice = cheapest_set(Strategy.LRU, candidates, missing)
    if choice is not None:
        others = [
            sorted((v.cost for v in chosen), reverse=True)
            for chosen in sufficient(candidates, missing)
        ]
        assert sorted((v.cost for v in choice.candidates), reverse=True) == min(others)


@given(candidates(), MISSING)
def test_cost_takes_the_set_with_the_least_sum(
    candidates: list[EvictionCandidate], missing: dict[int, int]
) -> None:
    """With as many candidates as are searched exactly, no sufficient set costs less."""
    choice = cheapest_set(Strategy.COST, candidates, missing)
    if choice is not None:
        least = min(sum(v.cost[0] for v in c) for c in sufficient(candidates, missing))
        assert sum(v.cost[0] for v in choice.candidates) == least


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 30)),
        min_size=MAX_EXACT_CANDIDATES + 1,
        max_size=MAX_EXACT_CANDIDATES + 4,
    ),
    st.integers(1, 400),
)
def test_greedy_cost_is_within_twice_the_optimum(
    drawn: list[tuple[int, int]], missing_mb: int
) -> None:
    """On one device, the greedy choice among many candidates costs at most twice the optimum."""
    candidates = [
        EvictionCandidate(InstanceId(f"v{at:02}"), {0: mb}, (float(w),))
        for at, (mb, w) in enumerate(drawn)
    ]
    choice = cheapest_set(Strategy.COST, candidates, {0: missing_mb})
    # The least sum for each amount freed, as in the textbook knapsack.
    least = {0: 0.0}
    for candidate in candidates:
        for freed, spent in list(least.items()):
            more, sum_ = freed + candidate.freed_mb[0], spent + candidate.cost[0]
            least[more] = min(sum_, least.get(more, sum_))
    best = min((s for freed, s in least.items() if freed >= missing_mb), default=None)
    assert (choice is None) == (best is None)
    if choice is not None and best is not None:
        assert sum(v.cost[0] for v in choice.candidates) <= 2 * best


def test_nothing_missing_needs_no_eviction() -> None:
    """Where memory suffices, nothing is evicted."""
    candidates = [EvictionCandidate(InstanceId("a"), {0: 10}, (1.0,))]
    choice = cheapest_set(Strategy.LRU, candidates, {0: 0})
    assert choice is not None
    assert choice.candidates == ()


def test_priority_outranks_recency() -> None:
    """Under `priority`, a low-priority instance that was just used is evicted before an older high-priority one."""
    low = eviction_cost(
        Strategy.PRIORITY, instance("low", last_used=1000.0), ModelStats(priority=0)
    )
    high = eviction_cost(Strategy.PRIORITY, instance("high", last_used=1.0), ModelStats(priority=5))
    assert low < high


def test_cost_weighs_reload_time_by_request_rate() -> None:
    """Under `cost`, a slow load that is rarely requested costs less than a fast one that is always requested."""
    slow = eviction_cost(Strategy.COST, instance("slow"), ModelStats(reload_s=60, rate=0.001))
    fast = eviction_cost(Strategy.COST, instance("fast"), ModelStats(reload_s=5, rate=1.0))
    assert slow < fast
