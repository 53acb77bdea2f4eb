from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.bench.measure import make_prompt
from cortex_cli.bench.statistics import (
    BenchRun,
    Sample,
    compare_runs,
    format_differences,
    percentile,
    percentiles,
    summarize_level,
)
from cortex_cli.color import Colors
from cortex_cli.commands.bench import run_document
from cortex_cli.render.output_format import OutputFormat

numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(numbers, st.floats(0, 1))
def test_a_percentile_lies_within_the_values(values: list[float], fraction: float):
    """A percentile is between the minimum and the maximum."""
    assert min(values) <= percentile(values, fraction) <= max(values) + 1e-6


@given(numbers)
def test_the_median_is_the_median(values: list[float]):
    """The 50th percentile equals the median of the standard library."""
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values))


@given(numbers)
def test_percentiles_are_in_order(values: list[float]):
    """p50 ≤ p95 ≤ p99."""
    found = percentiles(values)

    assert found is not None
    assert found.p50 <= found.p95 <= found.p99


def test_no_values_have_no_percentiles():
    """Without values there are no percentiles."""
    assert percentiles([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_failed_requests_are_counted_but_not_timed():
    """Errors are counted by code and excluded from rates and percentiles."""
    result = summarize_level(
        2,
        [
            Sample(0.1, 1.0, tokens=10, gaps_s=(0.1, 0.1)),
            Sample(None, 9.0, error="busy"),
            Sample(None, 9.0, error="busy"),
        ],
        2.0,
    )

    assert (result.requests, result.errors) == (3, {"busy": 2})
    assert (result.requests_per_s, result.tokens_per_s) == (0.5, 5.0)
    assert result.total is not None
    assert result.total.p99 == 1000.0


def run(seconds: float) -> BenchRun:
    """Return a run whose requests all took this long."""
    samples = [Sample(seconds / 10, seconds, tokens=10, gaps_s=(seconds / 10,))] * 4
    return BenchRun(
        model="m",
        gateway="http://g",
        version="0",
        at=datetime(2026, 11, 26, tzinfo=UTC),
        prompt_tokens=1,
        output_tokens=1,
        levels=(summarize_level(1, samples, 4 * seconds), summarize_level(4, samples, seconds)),
    )


def test_a_slower_run():
    """A run that takes twice as long has half the rate and +100% in every time, at each common concurrency."""
    found = compare_runs(run(1.0), run(2.0))

    assert {d.concurrency for d in found} == {1, 4}
    assert {round(d.change, 6) for d in found if d.higher_is_better} == {-0.5}
    assert {round(d.change, 6) for d in found if not d.higher_is_better} == {1.0}
    assert "+100.0%" in format_differences(found, Colors())


def test_runs_without_a_common_concurrency():
    """Only common concurrencies are compared."""
    one, two = run(1.0), run(1.0)

    assert (
        compare_runs(
            one.model_copy(update={"levels": one.levels[:1]}),
            two.model_copy(update={"levels": two.levels[1:]}),
        )
        == []
    )


def test_a_run_can_be_read_back():
    """A saved run can be read, with its time in RFC 3339 or, in older files, in Unix seconds."""
    saved = run_document(run(1.5), OutputFormat.JSON)
    assert json.loads(saved)["at"] == "2026-11-26T00:00:00Z"
    older = json.dumps(json.loads(saved) | {"at": run(1.5).at.timestamp()})

    assert BenchRun.model_validate_json(saved) == BenchRun.model_validate_json(older) == run(1.5)


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_prompts_have_the_given_length_and_differ(tokens: int, number: int):
    """A prompt has about the given number of words, and differs for each number."""
    (message,) = make_prompt(tokens, number)

    assert len(message.content.split()) == max(2, tokens - 1)
    assert message.content != make_prompt(tokens, number + 1)[0].content
