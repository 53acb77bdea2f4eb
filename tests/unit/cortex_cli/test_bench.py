from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.bench.measure import prompt
from cortex_cli.bench.statistics import (
    BenchRun,
    Sample,
    compare,
    differences_text,
    level,
    percentile,
    percentiles,
)
from cortex_cli.color import Paint
from cortex_cli.commands.bench import document_of
from cortex_cli.output import Output

numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(numbers, st.floats(0, 1))
def test_a_percentile_lies_within_the_values(values: list[float], share: float):
    """No percentile is beyond the smallest or the greatest value."""
    assert min(values) <= percentile(values, share) <= max(values) + 1e-6


@given(numbers)
def test_the_median_is_the_median(values: list[float]):
    """The 50th percentile is what the standard library calls median."""
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values))


@given(numbers)
def test_percentiles_are_in_order(values: list[float]):
    """p50 is at most p95, which is at most p99."""
    found = percentiles(values)

    assert found is not None
    assert found.p50 <= found.p95 <= found.p99


def test_nothing_has_no_percentile():
    """Of no values there is no percentile, and no made-up zero either."""
    assert percentiles([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_failed_requests_are_counted_but_not_timed():
    """Errors are counted by code and stay out of rates and percentiles."""
    found = level(
        2,
        [
            Sample(0.1, 1.0, tokens=10, gaps_s=(0.1, 0.1)),
            Sample(None, 9.0, error="busy"),
            Sample(None, 9.0, error="busy"),
        ],
        2.0,
    )

    assert (found.requests, found.errors) == (3, {"busy": 2})
    assert (found.requests_per_s, found.tokens_per_s) == (0.5, 5.0)
    assert found.total is not None
    assert found.total.p99 == 1000.0


def run(seconds: float) -> BenchRun:
    """A run whose requests all took so long."""
    samples = [Sample(seconds / 10, seconds, tokens=10, gaps_s=(seconds / 10,))] * 4
    return BenchRun(
        model="m",
        gateway="http://g",
        version="0",
        at=datetime(2026, 11, 26, tzinfo=UTC),
        prompt_tokens=1,
        output_tokens=1,
        levels=(level(1, samples, 4 * seconds), level(4, samples, seconds)),
    )


def test_a_slower_run_is_told():
    """Twice the time is half the rate and +100 % on every time, at each concurrency that both have."""
    found = compare(run(1.0), run(2.0))

    assert {d.concurrency for d in found} == {1, 4}
    assert {round(d.change, 6) for d in found if d.better} == {-0.5}
    assert {round(d.change, 6) for d in found if not d.better} == {1.0}
    assert "+100.0%" in differences_text(found, Paint())


def test_runs_without_a_common_concurrency_have_nothing_to_compare():
    """Only what both measured is compared."""
    one, two = run(1.0), run(1.0)

    assert (
        compare(
            one.model_copy(update={"levels": one.levels[:1]}),
            two.model_copy(update={"levels": two.levels[1:]}),
        )
        == []
    )


def test_a_run_can_be_read_back():
    """What is saved is what was measured, its time as RFC 3339; so is what was saved with Unix seconds."""
    saved = document_of(run(1.5), Output.JSON)
    assert json.loads(saved)["at"] == "2026-11-26T00:00:00Z"
    older = json.dumps(json.loads(saved) | {"at": run(1.5).at.timestamp()})

    assert BenchRun.model_validate_json(saved) == BenchRun.model_validate_json(older) == run(1.5)


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_prompts_have_their_length_and_differ(tokens: int, number: int):
    """A prompt has about as many words as tokens are asked for, and its number makes it its own."""
    (message,) = prompt(tokens, number)

    assert len(message.content.split()) == max(2, tokens - 1)
    assert message.content != prompt(tokens, number + 1)[0].content
