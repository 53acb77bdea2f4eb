"""Plain numbers, folded into Prometheus families."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cortex_server.metrics.exposition import GatewayCollector
from cortex_server.metrics.series import Histogram, Metrics


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus would read."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(metrics))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(st.lists(st.floats(0, 1000)))
def test_a_histogram_counts_every_value_once(values):
    """The last bucket holds all values, and each bucket those up to its bound."""
    histogram = Histogram((0.5, 10, 100))
    for value in values:
        histogram.observe(value)
    buckets = dict(histogram.buckets())
    assert buckets["+Inf"] == len(values)
    assert buckets["10.0"] == sum(v <= 10 for v in values)


def test_the_metrics_of_the_requirements_are_there():
    """Requests, duration, errors and cold starts carry model and node."""
    metrics = Metrics()
    series = metrics.series("m", "beast")
    series.finished(1.5, 0.2, 7, 3, cold=True, error=None)
    series.finished(0.5, None, 0, 0, cold=False, error="engine_500")
    got = scrape(metrics)
    by = (("model", "m"), ("node", "beast"))
    assert got["cortex_requests_total", by] == 2
    assert got["cortex_cold_starts_total", by] == 1
    assert got["cortex_prompt_tokens_total", by] == 7
    assert got["cortex_completion_tokens_total", by] == 3
    assert got["cortex_request_duration_seconds_sum", by] == 2.0
    assert (
        got["cortex_request_errors_total", (("code", "engine_500"), *by, ("side", "engine"))] == 1
    )
    assert got["cortex_time_to_first_token_seconds_count", by] == 1


def test_totals_sum_a_model_over_its_nodes():
    """The snapshot shows one number a model; cold starts stay out of its usual time to first token."""
    metrics = Metrics()
    metrics.series("m", "a").finished(1, 0.1, 1, 2, cold=False, error=None)
    metrics.series("m", "b").finished(1, 60.0, 1, 2, cold=True, error="busy")
    metrics.series("other", "b").finished(1, 0.9, 5, 5, cold=False, error=None)
    totals = metrics.totals("m")
    assert (totals.requests, totals.errors, totals.tokens_out) == (2, 1, 4)
    assert totals.ttft_p95_ms == 100.0
