"""Folds what was counted into the families that Prometheus reads."""

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
from cortex_common.errors import BY_CODE
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, SettingsView
from cortex_common.units import BYTES_PER_MIB
from cortex_server.metrics.series import FleetCounters, Histogram, Metrics, Series

_COUNTERS: tuple[tuple[str, str, Callable[[Series], float]], ...] = (
    ("cortex_requests", "Requests that ended, however they ended", lambda s: s.requests),
    ("cortex_cold_starts", "Requests that waited for a load", lambda s: s.cold_starts),
    ("cortex_prompt_tokens", "Prompt tokens, as the engines count", lambda s: s.tokens_in),
    (
        "cortex_cached_prompt_tokens",
        "Prompt tokens that the engines had in their caches",
        lambda s: s.tokens_cached,
    ),
    (
        "cortex_completion_tokens",
        "Completion tokens, as the engines count",
        lambda s: s.tokens_out,
    ),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
    (
        "cortex_request_duration_seconds",
        "From a request's arrival to its last byte",
        lambda s: s.duration,
    ),
    (
        "cortex_time_to_first_token_seconds",
        "From a request's arrival to the answer's first byte",
        lambda s: s.ttft,
    ),
    (
        "cortex_queue_wait_seconds",
        "Wait for a place or for a load, of requests that waited",
        lambda s: s.queue,
    ),
    (
        "cortex_inter_token_seconds",
        "From one token to the next, the mean of each request",
        lambda s: s.between,
    ),
    (
        "cortex_request_tokens_per_second",
        "Tokens a second from the first on, of each request",
        lambda s: s.speed,
    ),
)

_DEVICE_GAUGES: tuple[tuple[str, str, Callable[[DeviceView], float | None]], ...] = (
    (
        "cortex_device_memory_total_bytes",
        "Memory of the device",
        lambda d: d.vram_total_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_used_bytes",
        "Memory in use by anybody",
        lambda d: d.vram_used_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_reserved_bytes",
        "Memory promised to loads and not yet used",
        lambda d: d.vram_reserved_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_other_bytes",
        "Memory used by processes that cortex did not start",
        lambda d: d.vram_other_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_memory_available_bytes",
        "Memory that a new load can be promised",
        lambda d: d.vram_available_mb * BYTES_PER_MIB,
    ),
    (
        "cortex_device_utilization_ratio",
        "Share of time in which the device computed",
        lambda d: None if d.utilization_pct is None else d.utilization_pct / 100,
    ),
    ("cortex_device_temperature_celsius", "Temperature of the device", lambda d: d.temp_c),
    ("cortex_device_power_watts", "Power that the device draws", lambda d: d.power_w),
    (
        "cortex_device_healthy",
        "1 when the device can be given work",
        lambda d: float(d.health == "ok"),
    ),
)


def of_requests(rows: Iterable[Series]) -> Iterator[Metric]:
    """What requests did, by model and node."""
    rows = tuple(rows)
    by = ["model", "node"]
    for name, text, read in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=by)
        for s in rows:
            family.add_metric([s.model, s.node], read(s))
        yield family
    errors = CounterMetricFamily(
        "cortex_request_errors", "Requests that ended in an error", labels=[*by, "code", "side"]
    )
    for s in rows:
        for code, count in s.errors.items():
            errors.add_metric([s.model, s.node, code, side_of(code)], count)
    yield errors
    for name, text, read_histogram in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=by)
        for s in rows:
            h = read_histogram(s)
            histogram.add_metric([s.model, s.node], buckets=h.buckets(), sum_value=h.total)
        yield histogram


def side_of(code: str) -> str:
    """Whose fault an error is: "client", "engine" or "cortex"."""
    if code.startswith(("engine_", "upstream_")):
        return "engine"
    kind = BY_CODE.get(code)
    if code == "client_disconnected" or (kind is not None and kind.status < 500):
        return "client"
    return "cortex"


def of_repairs(repairs: Mapping[tuple[str, str, str], int]) -> Iterator[Metric]:
    """What was mended, by kind, model and harness."""
    family = CounterMetricFamily(
        "cortex_stream_repairs",
        "What was wrong in engines' answers and mended on the way",
        labels=["kind", "model", "harness"],
    )
    for labels, count in repairs.items():
        family.add_metric(list(labels), count)
    yield family


def of_gateway(
    disconnects: int, overhead: Histogram, lag: Histogram, inside: int, waiting: int
) -> Iterator[Metric]:
    """How the gateway itself does."""
    gone = CounterMetricFamily(
        "cortex_client_disconnects", "Requests whose client left before the end of the answer"
    )
    gone.add_metric([], disconnects)
    yield gone
    for name, text, value in (
        ("cortex_requests_admitted", "Requests that are worked on", inside),
        ("cortex_requests_queued", "Requests that wait for a place", waiting),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], value)
        yield gauge
    for name, text, histogram in (
        (
            "cortex_overhead_seconds",
            "From a whole request to its being on its way to an engine, where nothing was waited for",
            overhead,
        ),
        ("cortex_event_loop_lag_seconds", "How late the event loop was", lag),
    ):
        family = HistogramMetricFamily(name, text)
        family.add_metric([], buckets=histogram.buckets(), sum_value=histogram.total)
        yield family
    build = GaugeMetricFamily("cortex_build_info", "Always 1", labels=["version"])
    build.add_metric([__version__], 1)
    yield build


def of_tally(counters: FleetCounters) -> Iterator[Metric]:
    """What happened to instances."""
    loads = CounterMetricFamily(
        "cortex_loads", "Loads that ended", labels=["model", "node", "outcome"]
    )
    for labels, count in counters.loads.items():
        loads.add_metric(list(labels), count)
    yield loads
    seconds = HistogramMetricFamily(
        "cortex_load_seconds", "Of loads that became ready", labels=["model", "node"]
    )
    for (model, node), histogram in counters.load_seconds.items():
        seconds.add_metric([model, node], buckets=histogram.buckets(), sum_value=histogram.total)
    yield seconds
    unloads = CounterMetricFamily(
        "cortex_unloads",
        "Instances that were ended, by reason; evictions have the reason room",
        labels=["node", "reason"],
    )
    for (node, reason), count in counters.unloads.items():
        unloads.add_metric([node, reason], count)
    yield unloads
    drains = CounterMetricFamily("cortex_drains", "Drains that ended", labels=["outcome"])
    for outcome, count in counters.drains.items():
        drains.add_metric([outcome], count)
    yield drains
    restarts = CounterMetricFamily(
        "cortex_defrag_restarts",
        "Restarts of attached engines that were asked for",
        labels=["node", "harness", "outcome"],
    )
    for told, count in counters.restarts.items():
        restarts.add_metric(list(told), count)
    yield restarts


def of_fleet(fleet: FleetSnapshot) -> Iterator[Metric]:
    """Nodes, devices and instances as they are now."""
    up = GaugeMetricFamily("cortex_node_up", "1 when the node answers", labels=["node"])
    for node in fleet.nodes:
        up.add_metric([node.name], float(node.state == "up"))
    yield up
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
        "Engines that crashed, hung or could not be loaded, since their neuron started",
        labels=["node", "model", "kind"],
    )
    for node in fleet.nodes:
        for failed in node.failures:
            failures.add_metric([node.name, failed.model, failed.kind], failed.count)
    yield failures
    yield _of_certificates(fleet)
    yield from _of_settings(fleet.settings)
    yield from _of_instances(fleet)


def _of_certificates(fleet: FleetSnapshot) -> Metric:
    ends = GaugeMetricFamily(
        "cortex_certificate_expiry_timestamp_seconds",
        "Unix time at which a certificate ends",
        labels=["node", "file"],
    )
    for node, certificates in fleet.all_certificates:
        for certificate in certificates:
            ends.add_metric([node or "none", certificate.file], certificate.ends_at)
    return ends


def _of_settings(settings: SettingsView) -> Iterator[Metric]:
    followed = GaugeMetricFamily(
        "cortex_config_last_reload_successful", "1 while the gateway runs by its files"
    )
    at = GaugeMetricFamily(
        "cortex_config_last_reload_success_timestamp_seconds",
        "Unix time at which the settings in force were read",
    )
    if settings.read_at:
        followed.add_metric([], float(settings.refused is None))
        at.add_metric([], settings.read_at)
    yield from (followed, at)


def _of_instances(fleet: FleetSnapshot) -> Iterator[Metric]:
    sums: Counter[tuple[str, str]] = Counter()
    states: Counter[tuple[str, str, str]] = Counter()
    for instance in fleet.instances():
        sums[instance.model, instance.node] += instance.in_flight
        states[instance.model, instance.node, instance.state] += 1
    flight = GaugeMetricFamily(
        "cortex_in_flight_requests", "Requests under way", labels=["model", "node"]
    )
    for place, count in sums.items():
        flight.add_metric(list(place), count)
    yield flight
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
    """Collector that Prometheus reads.

    Args:
        metrics: the series and counters to expose.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield from of_requests(metrics.all_series)
        yield from of_repairs(metrics.repairs)
        inside, waiting = metrics.queue()
        yield from of_gateway(metrics.disconnects, metrics.overhead, metrics.lag, inside, waiting)
        yield from of_tally(metrics.counters)
        if metrics.snapshot is not None:
            yield from of_fleet(metrics.snapshot())

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return ()
