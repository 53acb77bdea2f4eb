"""What the gateway counts: plain numbers on the hot path, folded into Prometheus families at scrape.

A counter of prometheus_client costs a microsecond or two with its label lookup; an integer in a slot a
twentieth of that. So each model on each node has a `Series` that the data plane holds on to, and the
`Collector` reads them when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cortex_common import __version__
from cortex_common.fleet import FleetSnapshot
from cortex_common.units import BYTES_PER_MIB

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_RECENT = 128

NOWHERE = "none"
"""Label of a model or node that a request never got to: unknown names must not become labels."""


class Histogram:
    """Counts by bucket, as Prometheus wants them cumulated at scrape.

    Args:
        bounds: upper bounds of the buckets, ascending, without infinity.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts with the bound of each bucket as text, "+Inf" last."""
        cumulated, rows = 0, []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            cumulated += count
            rows.append(("+Inf" if bound is None else str(float(bound)), float(cumulated)))
        return rows


@dataclass(slots=True, eq=False)
class Series:
    """The numbers of one model on one node; they only grow.

    Attributes:
        errors: by error code of cortex, or "engine_<status>" for an engine's own.
        recent_ttft: seconds to the first token of the latest requests that found a ready instance.
    """

    model: str
    node: str
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cold_starts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    ttft: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    recent_ttft: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def finished(
        self,
        seconds: float,
        ttft: float | None,
        tokens_in: int,
        tokens_out: int,
        *,
        cold: bool,
        error: str | None,
    ) -> None:
        """Count a request that ended here.

        Args:
            seconds: from its arrival to its last byte.
            ttft: seconds from its arrival to the first byte of the answer; None when none came.
            tokens_in: prompt tokens, as the engine counted.
            tokens_out: completion tokens, as the engine counted.
            cold: it waited for a load.
            error: code of what went wrong.
        """
        self.requests += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.duration.observe(seconds)
        if error is not None:
            self.errors[error] += 1
        if cold:
            self.cold_starts += 1
        if ttft is not None:
            self.ttft.observe(ttft)
            if not cold:
                self.recent_ttft.append(ttft)


@dataclass(frozen=True, slots=True)
class Totals:
    """The numbers of one model over all nodes."""

    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


class Metrics(Collector):
    """All series of this gateway; also the collector that Prometheus reads.

    Args:
        snapshot: the fleet at the moment of the scrape; set by the gateway once there is a fleet.
    """

    def __init__(self, snapshot: Callable[[], FleetSnapshot] | None = None) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        self.snapshot = snapshot
        self.disconnects = 0
        self.repairs: Counter[tuple[str, str, str]] = Counter()

    def series(self, model: str, node: str) -> Series:
        """The series of a model on a node."""
        found = self._series.get((model, node))
        if found is None:
            found = self._series[model, node] = Series(model, node)
        return found

    def repaired(self, repairs: Counter[str], model: str, harness: str) -> None:
        """Count what had to be mended in an answer."""
        for kind, count in repairs.items():
            self.repairs[kind, model, harness] += count

    def totals(self, model: str) -> Totals:
        """The sums of a model over its nodes."""
        mine = [s for s in list(self._series.values()) if s.model == model]
        ttfts = sorted(t for s in mine for t in list(s.recent_ttft))
        return Totals(
            requests=sum(s.requests for s in mine),
            errors=sum(s.errors.total() for s in mine),
            tokens_in=sum(s.tokens_in for s in mine),
            tokens_out=sum(s.tokens_out for s in mine),
            ttft_p50_ms=_quantile_ms(ttfts, 0.5),
            ttft_p95_ms=_quantile_ms(ttfts, 0.95),
        )

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client at each scrape."""
        rows = list(self._series.values())
        yield from _request_families(rows)
        gone = CounterMetricFamily(
            "cortex_client_disconnects", "Requests whose client left before the end of the answer"
        )
        gone.add_metric([], self.disconnects)
        yield gone
        repairs = CounterMetricFamily(
            "cortex_stream_repairs",
            "What was wrong in engines' answers and mended on the way",
            labels=["kind", "model", "harness"],
        )
        for (kind, model, harness), count in list(self.repairs.items()):
            repairs.add_metric([kind, model, harness], count)
        yield repairs
        build = GaugeMetricFamily("cortex_build_info", "Always 1", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if self.snapshot is not None:
            yield from _fleet_families(self.snapshot())

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised before the first scrape, so that registering collects nothing."""
        return ()


def _quantile_ms(ascending: list[float], share: float) -> float | None:
    if not ascending:
        return None
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] * 1000


def _request_families(rows: list[Series]) -> Iterator[Metric]:
    by = ["model", "node"]
    counters: tuple[tuple[str, str, Callable[[Series], float]], ...] = (
        ("cortex_requests", "Requests that ended, however they ended", lambda s: s.requests),
        ("cortex_cold_starts", "Requests that waited for a load", lambda s: s.cold_starts),
        ("cortex_prompt_tokens", "Prompt tokens, as the engines count", lambda s: s.tokens_in),
        (
            "cortex_completion_tokens",
            "Completion tokens, as the engines count",
            lambda s: s.tokens_out,
        ),
    )
    for name, text, read in counters:
        family = CounterMetricFamily(name, text, labels=by)
        for s in rows:
            family.add_metric([s.model, s.node], read(s))
        yield family
    errors = CounterMetricFamily(
        "cortex_request_errors", "Requests that ended in an error", labels=[*by, "code"]
    )
    for s in rows:
        for code, count in list(s.errors.items()):
            errors.add_metric([s.model, s.node, code], count)
    yield errors
    histograms: tuple[tuple[str, str, Callable[[Series], Histogram]], ...] = (
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
    )
    for name, text, read_histogram in histograms:
        histogram = HistogramMetricFamily(name, text, labels=by)
        for s in rows:
            h = read_histogram(s)
            histogram.add_metric([s.model, s.node], buckets=h.buckets(), sum_value=h.total)
        yield histogram


def _fleet_families(fleet: FleetSnapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily("cortex_node_up", "1 when the node answers", labels=["node"])
    total = GaugeMetricFamily(
        "cortex_device_memory_total_bytes", "Memory of the device", labels=["node", "device"]
    )
    used = GaugeMetricFamily(
        "cortex_device_memory_used_bytes", "Memory in use by anybody", labels=["node", "device"]
    )
    for node in fleet.nodes:
        up.add_metric([node.name], float(node.state == "up"))
        for device in node.devices:
            labels = [node.name, str(device.index)]
            total.add_metric(labels, device.vram_total_mb * BYTES_PER_MIB)
            used.add_metric(labels, device.vram_used_mb * BYTES_PER_MIB)
    yield from (up, total, used)
    flight = GaugeMetricFamily(
        "cortex_in_flight_requests", "Requests under way", labels=["model", "node"]
    )
    sums: Counter[tuple[str, str]] = Counter()
    states: Counter[tuple[str, str, str]] = Counter()
    for instance in fleet.instances():
        sums[instance.model, instance.node] += instance.in_flight
        states[instance.model, instance.node, instance.state] += 1
    for (model, name), count in sums.items():
        flight.add_metric([model, name], count)
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
