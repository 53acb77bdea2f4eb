"""Conversion of the gateway's counters to Prometheus metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cortex_server.metrics.exposition import GatewayCollector, error_side
from cortex_server.metrics.series import Histogram, Metrics


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the samples that Prometheus would scrape, by name and labels."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(metrics))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(st.lists(st.floats(0, 1000)))
def test_histogram_buckets_are_cumulative(values):
    """The last bucket contains all values, and each bucket those up to its bound."""
    histogram = Histogram((0.5, 10, 100))
    for value in values:
        histogram.observe(value)
    buckets = dict(histogram.buckets())
    assert buckets["+Inf"] == len(values)
    assert buckets["10.0"] == sum(v <= 10 for v in values)


def test_the_required_metrics_are_exposed():
    """Requests, duration, errors and cold starts have the labels model and node."""
    metrics = Metrics()
    series = metrics.series("m", "beast")
    series.count_request(1.5, 0.2, 7, 3, cold=True, error=None)
    series.count_request(0.5, None, 0, 0, cold=False, error="engine_500")
    samples = scrape(metrics)
    labels = (("model", "m"), ("node", "beast"))
    assert samples["cortex_requests_total", labels] == 2
    assert samples["cortex_cold_starts_total", labels] == 1
    assert samples["cortex_prompt_tokens_total", labels] == 7
    assert samples["cortex_completion_tokens_total", labels] == 3
    assert samples["cortex_request_duration_seconds_sum", labels] == 2.0
    error_labels = (("code", "engine_500"), *labels, ("side", "engine"))
    assert samples["cortex_request_errors_total", error_labels] == 1
    assert samples["cortex_time_to_first_token_seconds_count", labels] == 1


def test_totals_sum_a_model_over_its_nodes():
    """Cold starts are excluded from the time to first token."""
    metrics = Metrics()
    metrics.series("m", "a").count_request(1, 0.1, 1, 2, cold=False, error=None)
    metrics.series("m", "b").count_request(1, 60.0, 1, 2, cold=True, error="busy")
    metrics.series("other", "b").count_request(1, 0.9, 5, 5, cold=False, error=None)
    totals = metrics.totals("m")
    assert (totals.requests, totals.errors, totals.tokens_out) == (2, 1, 4)
    assert totals.ttft_p95_ms == 100.0


@pytest.mark.parametrize(
    ("code", "side"),
    [
        ("engine_500", "engine"),
        ("upstream_timeout", "engine"),
        ("client_disconnected", "client"),
        ("model_not_found", "client"),
        ("rate_limited", "client"),
        ("no_healthy_node", "cortex"),
        ("internal_error", "cortex"),
        ("does_not_fit", "cortex"),
    ],
)
def test_each_error_code_has_a_side(code, side):
    """The code of an error determines whose fault it is."""
    assert error_side(code) == side
