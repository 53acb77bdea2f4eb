from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cortex_server.proxy.load_balancer import pick, pick_of_equal, pick_with_affinity


@dataclass(frozen=True)
class Ready:
    in_flight: int
    slots: int = 1


ready = st.lists(st.builds(Ready, st.integers(0, 50), st.integers(1, 16)), min_size=1, max_size=8)
alike = st.integers(1, 16).flatmap(
    lambda slots: st.lists(
        st.builds(Ready, st.integers(0, 50), st.just(slots)), min_size=1, max_size=8
    )
)


@given(ready)
def test_the_least_loaded_is_picked(candidates: list[Ready]) -> None:
    """No other candidate has less in flight for its slots."""
    found = pick(candidates)
    assert found.in_flight / found.slots == min(c.in_flight / c.slots for c in candidates)


@given(alike)
def test_among_alike_the_short_way_picks_the_same(candidates: list[Ready]) -> None:
    """Where all have the same slots, those need not be looked at."""
    assert pick_of_equal(candidates) is pick(candidates)


@given(ready)
def test_without_matches_affinity_changes_nothing(candidates: list[Ready]) -> None:
    """With no conversation known, the pick is the least loaded."""
    assert pick_with_affinity(candidates, {}) is pick(candidates)


@given(st.integers(1, 16), st.floats(0.05, 1.0))
def test_a_conversation_stays_until_its_instance_is_too_busy(slots: int, match: float) -> None:
    """A match keeps a conversation on its instance while the load there outweighs it by nothing, and no longer."""
    home_busy = Ready(in_flight=int(match * slots * 0.9), slots=slots)
    away = Ready(in_flight=0, slots=slots)
    assert pick_with_affinity([away, home_busy], {1: match}) is home_busy
    home_full = Ready(in_flight=int(match * slots) + 1, slots=slots)
    assert pick_with_affinity([away, home_full], {1: match}) is away
