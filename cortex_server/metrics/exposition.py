"""Converts the gateway's counters and the state of the fleet to Prometheus metric families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from cortex_common import __version__
from cortex_common.errors import ERRORS_BY_CODE
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, SettingsView
from cortex_common.units import BYTES_PER_MIB
from cortex_server.metrics.series import FleetCounters, Histogram, Metrics, Series

_COUNTERS: tuple[tuple[str, str, Callable[[Series], float]], ...] = (
    ("cortex_requests", "Finished requests, successful or not", lambda s: s.requests),
    ("cortex_cold_starts", "Requests that waited for a load", lambda s: s.cold_starts),
    ("cortex_prompt_tokens", "Prompt tokens, as counted by the engines", lambda s: s.tokens_in),
    (
        "cortex_cached_prompt_tokens",
        "Prompt tokens that the engines had in their caches",
        lambda s: s.tokens_cached,
    ),
    (
        "cortex_completion_tokens",
        "Completion tokens, as counted by the engines",
        lambda s: s.tokens_out,
    ),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
    (
        "cortex_request_duration_seconds",
        "Time from arrival of a request to its last byte",
        lambda s: s.duration,
    ),
    (
        "cortex_time_to_first_token_seconds",
        "Time from arrival of a request to the first byte of the response",
        lambda s: s.ttft,
    ),
    (
        "cortex_queue_wait_seconds",
        "Time that requests waited for admission or for a load, without those that did not wait",
        lambda s: s.queue,
    ),
    (
        "cortex_inter_token_seconds",
        "Time between tokens, the mean of each request",
        lambda s: s.inter_token,
    ),
    (
        "cortex_request_tokens_per_second",
        "Generation speed of each request, without the time to the first token",
        lambda s: s.tokens_per_second,
    ),
)

_DEVICE_GAUGES: tuple[tuple[str, str, Callable[[DeviceView], float | None]], ...] = (
    (
        "cortex_device_memory_total_bytes",
        "Total memory of the device",
        lambda d: d.vram_total_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_used_bytes",
        "Memory in use by any process",
        lambda d: d.vram_used_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_reserved_bytes",
        "Memory reserved for loads and not yet used",
        lambda d: d.vram_reserved_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_other_bytes",
        "Memory used by processes that cortex does not manage",
        lambda d: d.vram_other_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_available_bytes",
        "Memory that a new load can use",
        lambda d: d.vram_available_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_utilization_ratio",
        "Share of time in which the device was busy",
        lambda d: None if d.utilization_pct is None else d.utilization_pct / 100,
    ),
    ("cortex_device_temperature_celsius", "Temperature of the device", lambda d: d.temp_c),
    ("cortex_device_power_watts", "Power draw of the device", lambda d: d.power_w),
    (
        "cortex_device_healthy",
        "1 if the device is healthy",
        lambda d: float(d.health == "ok"),
    ),
)


def _request_metrics(rows: Iterable[Series]) -> Iterator[Metric]:
    """Yield requests, tokens and latencies by model and node."""
    rows = tuple(rows)
    model_and_node = ["model", "node"]
    for name, text, read in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=model_and_node)
        for s in rows:
            family.add_metric([s.model, s.node], read(s))
        yield family
    errors = CounterMetricFamily(
        "cortex_request_errors",
        "Requests that ended in an error",
        labels=[*model_and_node, "code", "side"],
    )
    for s in rows:
        for code, count in s.errors.items():
            errors.add_metric([s.model, s.node, code, error_side(code)], count)
    yield errors
    for name, text, read_histogram in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=model_and_node)
        for s in rows:
            h = read_histogram(s)
            histogram.add_metric([s.model, s.node], buckets=h.buckets(), sum_value=h.total)
        yield histogram


def error_side(code: str) -> str:
    """Return whose fault an error is: "client", "engine" or "cortex"."""
    if code.startswith(("engine_", "upstream_")):
        return "engine"
    kind = ERRORS_BY_CODE.get(code)
    if code == "client_disconnected" or (kind is not None and kind.status < 500):
        return "client"
    return "cortex"


def _repair_metrics(repairs: Mapping[tuple[str, str, str], int]) -> Iterator[Metric]:
    """Yield the repaired responses by kind, model and harness."""
    family = CounterMetricFamily(
        "cortex_stream_repairs",
        "Defects in responses of engines that the gateway repaired",
        labels=["kind", "model", "harness"],
    )
    for labels, count in repairs.items():
        family.add_metric(list(labels), count)
    yield family


def _gateway_metrics(
    disconnects: int, overhead: Histogram, lag: Histogram, admitted: int, queued: int
) -> Iterator[Metric]:
    """Yield the metrics of the gateway process itself."""
    disconnects_total = CounterMetricFamily(
        "cortex_client_disconnects",
        "Requests whose client disconnected before the end of the response",
    )
    disconnects_total.add_metric([], disconnects)
    yield disconnects_total
    for name, text, value in (
        ("cortex_requests_admitted", "Admitted requests that have not finished", admitted),
        ("cortex_requests_queued", "Requests that wait for admission", queued),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], value)
        yield gauge
    for name, text, histogram in (
        (
            "cortex_overhead_seconds",
            "Gateway overhead from complete request to upstream send, queueing excluded",
            overhead,
        ),
        ("cortex_event_loop_lag_seconds", "Delay of the event loop", lag),
    ):
        family = HistogramMetricFamily(name, text)
        family.add_metric([], buckets=histogram.buckets(), sum_value=histogram.total)
        yield family
    build = GaugeMetricFamily("cortex_build_info", "Always 1", labels=["version"])
    build.add_metric([__version__], 1)
    yield build


def _fleet_counter_metrics(counters: FleetCounters) -> Iterator[Metric]:
    """Yield loads, unloads, drains and restarts."""
    loads = CounterMetricFamily(
        "cortex_loads", "Finished loads, successful or not", labels=["model", "node", "outcome"]
    )
    for labels, count in counters.loads.items():
        loads.add_metric(list(labels), count)
    yield loads
    seconds = HistogramMetricFamily(
        "cortex_load_seconds", "Duration of loads that became ready", labels=["model", "node"]
    )
    for (model, node), histogram in counters.load_seconds.items():
        seconds.add_metric([model, node], buckets=histogram.buckets(), sum_value=histogram.total)
    yield seconds
    unloads = CounterMetricFamily(
        "cortex_unloads",
        "Unloaded instances by reason",
        labels=["node", "reason"],
    )
    for (node, reason), count in counters.unloads.items():
        unloads.add_metric([node, reason], count)
    yield unloads
    drains = CounterMetricFamily(
        "cortex_drains", "Finished drains, successful or not", labels=["outcome"]
    )
    for outcome, count in counters.drains.items():
        drains.add_metric([outcome], count)
    yield drains
    restarts = CounterMetricFamily(
        "cortex_defrag_restarts",
        "Requested restarts of attached engines",
        labels=["node", "harness", "outcome"],
    )
    for labels, count in counters.restarts.items():
        restarts.add_metric(list(labels), count)
    yield restarts


def _fleet_metrics(fleet: FleetSnapshot) -> Iterator[Metric]:
    """Yield the current state of nodes, devices and instances."""
    node_up = GaugeMetricFamily("cortex_node_up", "1 if the node is reachable", labels=["node"])
    for node in fleet.nodes:
        node_up.add_metric([node.name], float(node.state == "up"))
    yield node_up
    devices = [(node.name, device) for node in fleet.nodes for device in node.devices]
    for name, text, read in _DEVICE_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["node", "device"])
        for node_name, device in devices:
            if (value := read(device)) is not None:
                gauge.add_metric([node_name, str(device.index)], value)
        yield gauge
    cycles = GaugeMetricFamily(
        "cortex_attached_engine_cycles",
        "Loads and unloads in an attached engine since it started",
        labels=["node", "harness"],
    )
    for node in fleet.nodes:
        for engine in node.engines:
            cycles.add_metric([node.name, engine.harness], engine.cycles)
    yield cycles
    failures = CounterMetricFamily(
        "cortex_engine_failures",
        "Engines that crashed, hung or failed to load, since their neuron started",
        labels=["node", "model", "kind"],
    )
    for node in fleet.nodes:
        for failure in node.failures:
            failures.add_metric([node.name, failure.model, failure.kind], failure.count)
    yield failures
    yield _certificate_metrics(fleet)
    yield from _config_metrics(fleet.settings)
    yield from _instance_metrics(fleet)


def _certificate_metrics(fleet: FleetSnapshot) -> Metric:
    expiry = GaugeMetricFamily(
        "cortex_certificate_expiry_timestamp_seconds",
        "Unix time at which a certificate expires",
        labels=["node", "file"],
    )
    for node, certificates in fleet.all_certificates:
        for certificate in certificates:
            expiry.add_metric([node or "none", certificate.file], certificate.expires_at)
    return expiry


def _config_metrics(settings: SettingsView) -> Iterator[Metric]:
    reloaded = GaugeMetricFamily(
        "cortex_config_last_reload_successful",
        "1 if the last reload of the configuration succeeded",
    )
    reloaded_at = GaugeMetricFamily(
        "cortex_config_last_reload_success_timestamp_seconds",
        "Unix time of the last successful reload of the configuration",
    )
    if settings.read_at:
        reloaded.add_metric([], float(settings.reload_error is None))
        reloaded_at.add_metric([], settings.read_at)
    yield from (reloaded, reloaded_at)


def _instance_metrics(fleet: FleetSnapshot) -> Iterator[Metric]:
    sums: Counter[tuple[str, str]] = Counter()
    states: Counter[tuple[str, str, str]] = Counter()
    for instance in fleet.instances():
        sums[instance.model, instance.node] += instance.in_flight
        states[instance.model, instance.node, instance.state] += 1
    in_flight = GaugeMetricFamily(
        "cortex_in_flight_requests", "Requests in flight on instances", labels=["model", "node"]
    )
    for place, count in sums.items():
        in_flight.add_metric(list(place), count)
    yield in_flight
    waiting = GaugeMetricFamily(
        "cortex_waiting_requests", "Requests that wait for a load", labels=["model"]
    )
    for view in fleet.models:
        waiting.add_metric([view.id], view.waiting)
    yield waiting
    instances = GaugeMetricFamily(
        "cortex_instances", "Instances by state", labels=["model", "node", "state"]
    )
    for key, count in states.items():
        instances.add_metric(list(key), count)
    yield instances


class GatewayCollector(Collector):
    """Collector of all metrics of a gateway for prometheus_client.

    Args:
        metrics: the series and counters to expose.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield from _request_metrics(metrics.all_series)
        yield from _repair_metrics(metrics.repairs)
        admitted, queued = metrics.queue()
        yield from _gateway_metrics(
            metrics.disconnects, metrics.overhead, metrics.lag, admitted, queued
        )
        yield from _fleet_counter_metrics(metrics.counters)
        tasks = CounterMetricFamily(
            "cortex_task_failures",
            "Failures of background tasks, which are restarted",
            labels=["task"],
        )
        for failed in metrics.task_failures():
            tasks.add_metric([failed.task], failed.count)
        yield tasks
        writes = CounterMetricFamily(
            "cortex_database_write_failures",
            "Failed transactions of the database, such as on a full disk",
        )
        writes.add_metric([], metrics.write_failures())
        yield writes
        if metrics.snapshot is not None:
            yield from _fleet_metrics(metrics.snapshot())

    def describe(self) -> Iterable[Metric]:
        """Return no metrics, so that registration does not collect."""
        return ()
