"""The simulator: traces, the bound, and the policies. What the included traces show is tested in tests/docs."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest
from cortex_server.placement.policy import Policy
from cortex_server.simulate.failures import Failures
from cortex_server.simulate.fleet import Hosts, Model, SimulatedFleet
from cortex_server.simulate.report import ORACLE, bound, compare_policies
from cortex_server.simulate.trace import Request, Traffic, generate, read, write

TWO_OF_THREE = SimulatedFleet(
    hosts=(Hosts(name="h", devices=1, vram_mb=200),),
    models=tuple(Model(id=m, vram_mb=100, load_s=10, tokens_per_s=100) for m in "abc"),
)


def spaced_out(names: str) -> list[Request]:
    """Return requests a thousand seconds apart, so that none waits for another."""
    return [Request(1000.0 * at, name, 100) for at, name in enumerate(names)]


def test_a_trace_round_trips() -> None:
    """What is written as JSON lines is read back the same, to the millisecond."""
    trace = generate(Traffic(requests=200), ["a", "b"])
    file = io.StringIO()
    write(trace, file)
    again = list(read(io.StringIO(file.getvalue()), "trace"))
    assert [(r.model, r.tokens) for r in again] == [(r.model, r.tokens) for r in trace]
    assert all(abs(x.at - y.at) < 0.001 for x, y in zip(again, trace, strict=True))


LINE = '{"time": %d, "model": "a", "tokens": 1}\n'


@pytest.mark.parametrize("text", ['{"time": 1}', "nonsense", LINE % 2 + LINE % 1])
def test_an_invalid_line_is_reported_with_its_number(text: str) -> None:
    """A line that is not a request, or whose time is before the previous line's, is an error."""
    with pytest.raises(BadRequest, match=r"trace:\d"):
        list(read(io.StringIO(text), "trace"))


def test_generated_traffic_follows_zipf() -> None:
    """The first model gets about twice the requests of the second, all in order of time."""
    trace = generate(Traffic(requests=20_000, zipf=1.0, burst=0.0), [f"m{i}" for i in range(5)])
    counts = [sum(r.model == f"m{i}" for r in trace) for i in range(5)]
    assert len(trace) == 20_000
    assert 1.8 < counts[0] / counts[1] < 2.2
    assert [r.at for r in trace] == sorted(r.at for r in trace)


def test_round_robin_costs_a_load_each_time_under_lru() -> None:
    """Three models in turn where two fit are the worst case of LRU."""
    report = compare_policies(TWO_OF_THREE, spaced_out("abcabcabc"), ["lru"], Policy())
    assert report.rows[0].loads == 9
    assert report.rows[0].cold_start_s == 90


def test_the_oracle_keeps_what_is_needed_next() -> None:
    """It loads fewer models than LRU in LRU's worst case, and not fewer than the bound."""
    oracle, lru = compare_policies(
        TWO_OF_THREE, spaced_out("abcabcabc"), [ORACLE, "lru"], Policy()
    ).rows
    assert oracle.loads == 6
    assert bound(TWO_OF_THREE, spaced_out("abcabcabc")) <= oracle.cold_start_s < lru.cold_start_s


@given(st.text("abc", min_size=1, max_size=25), st.sampled_from(["lru", "cost", ORACLE]))
def test_no_policy_beats_the_bound(names: str, policy: str) -> None:
    """For any trace, no policy needs fewer seconds than the offline bound."""
    trace = spaced_out(names)
    report = compare_policies(TWO_OF_THREE, trace, [policy], Policy())
    assert report.rows[0].cold_start_s >= report.bound_s - 1e-6
    assert report.rows[0].refused == 0
    assert report.rows[0].cold_starts == report.rows[0].loads


TIGHT = SimulatedFleet(
    hosts=(Hosts(name="h", count=2, devices=2, vram_mb=200),),
    models=(
        Model(id="a", vram_mb=100, load_s=10, tokens_per_s=100),
        Model(id="b", vram_mb=90, actual_vram_mb=150, load_s=10, tokens_per_s=100),
        Model(id="c", vram_mb=60, actual_vram_mb=190, load_s=10, tokens_per_s=100),
        Model(id="d", vram_mb=120, actual_vram_mb=999, load_s=10, tokens_per_s=100),
    ),
)


def test_a_model_that_takes_more_than_configured_is_served_after_few_attempts() -> None:
    """Its size is learned, idle models make room for it, and it is not left out."""
    trace = spaced_out("aabcabcabc" * 3)
    one = SimulatedFleet(hosts=(Hosts(name="h", devices=1, vram_mb=200),), models=TIGHT.models)
    (row,) = compare_policies(one, trace, ["lru"], Policy()).rows
    assert (row.refused, row.unanswered) == (0, 0)
    assert 1 <= row.failed_loads <= 4
    assert row.most_in_vain <= 2


def test_a_model_that_fits_nowhere_is_refused_and_disturbs_no_other() -> None:
    """Its engine is not started over and over, and its clients get an answer."""
    (row,) = compare_policies(TIGHT, spaced_out("adadadad"), ["lru"], Policy()).rows
    assert row.unanswered == 0
    assert row.refused == 4
    assert row.failed_loads <= 4 * len(TIGHT.models)


@given(st.text("abcd", min_size=1, max_size=40), st.integers(0, 9), st.sampled_from([1.0, 60.0]))
def test_every_request_is_answered_whatever_fails(names: str, seed: int, apart: float) -> None:
    """Engines crash and run out of memory, and hosts are away; nothing is overcommitted, and nothing livelocks."""
    failures = Failures(crashes_per_hour=60, absences_per_hour=60, absence_s=30, seed=seed)
    fleet = TIGHT.model_copy(update={"failures": failures})
    trace = [Request(apart * at, name, 100) for at, name in enumerate(names)]
    (row,) = compare_policies(fleet, trace, ["cost"], Policy()).rows
    assert row.unanswered == 0
    assert row.most_in_vain <= 16
