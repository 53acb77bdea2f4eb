"""Counters of the gateway: plain numbers on the hot path, converted to Prometheus metrics at scrape time.

A counter of prometheus_client costs one to two microseconds including its label lookup, an integer attribute a
twentieth of that. So each model on each node has a `Series` that the proxy holds a reference to, and
`cortex_server.metrics.exposition` builds the metric families when Prometheus scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.instances import InstanceId, InstanceState, ModelInfo, NodeStatus
from cortex_common.supervision import TaskFailures

NOWHERE = "none"
"""Model and node label of requests that reached no model or node: names sent by clients must not become labels."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS_PER_SECOND = (1, 2.5, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1000)
_OVERHEAD = (25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.05)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)

_RECENT_REQUESTS = 128


class Histogram:
    """Counts by bucket.

    Args:
        bounds: upper bounds of the buckets in ascending order, without infinity.

    Attributes:
        counts: observations per bucket, not cumulative; the last bucket has no bound.
        total: sum of the observations.
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
        """Return the bounds and cumulative counts as prometheus_client expects them, "+Inf" last."""
        cumulative, rows = 0, []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            cumulative += count
            rows.append(("+Inf" if bound is None else str(float(bound)), float(cumulative)))
        return rows


@dataclass(slots=True, eq=False)
class Series:
    """Counters of one model on one node.

    Attributes:
        requests: finished requests.
        errors: failed requests by error code of cortex, or "engine_<status>" for an engine's own error.
        cold_starts: requests that waited for a load.
        tokens_in: prompt tokens.
        tokens_out: completion tokens.
        tokens_cached: prompt tokens that the engine had in its cache.
        duration: seconds from arrival to the last byte.
        ttft: seconds from arrival to the first byte of the response.
        queue: seconds that requests waited for admission or for a load, without those that did not wait.
        inter_token: seconds between tokens, the mean of each request.
        tokens_per_second: generation speed of each request, without the time to the first token.
        recent_ttft: seconds to the first byte of the latest requests that found a ready instance.
    """

    model: str
    node: str
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cold_starts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    ttft: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    queue: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    inter_token: Histogram = field(default_factory=lambda: Histogram(_TOKEN_SECONDS))
    tokens_per_second: Histogram = field(default_factory=lambda: Histogram(_TOKENS_PER_SECOND))
    recent_ttft: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_REQUESTS))

    def count_request(
        self,
        seconds: float,
        ttft: float | None,
        tokens_in: int,
        tokens_out: int,
        *,
        cold: bool,
        error: str | None,
        tokens_cached: int = 0,
        queued: float = 0.0,
    ) -> None:
        """Count a finished request.

        Args:
            seconds: from arrival to the last byte.
            ttft: seconds from arrival to the first byte of the response; None if there was none.
            tokens_in: prompt tokens, as counted by the engine.
            tokens_out: completion tokens, as counted by the engine.
            cold: whether it waited for a load.
            error: error code, if it failed.
            tokens_cached: prompt tokens that the engine had in its cache.
            queued: seconds that it waited for admission or for a load.
        """
        self.requests += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.tokens_cached += tokens_cached
        self.duration.observe(seconds)
        if queued:
            self.queue.observe(queued)
        if error is not None:
            self.errors[error] += 1
        if cold:
            self.cold_starts += 1
        if ttft is not None:
            self.ttft.observe(ttft)
            if not cold:
                self.recent_ttft.append(ttft)
            # A single token, or a response in one piece, has no time between tokens.
            if tokens_out > 1 and seconds > ttft:
                self.inter_token.observe((seconds - ttft) / (tokens_out - 1))
                self.tokens_per_second.observe((tokens_out - 1) / (seconds - ttft))


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of one model, summed over all nodes."""

    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


class Metrics:
    """All counters of a gateway.

    Args:
        snapshot: returns the fleet at scrape time; set by the gateway once there is a fleet.

    Attributes:
        disconnects: requests whose client disconnected early.
        repairs: repaired responses by kind, model and harness.
        overhead: seconds from complete request to upstream send, queueing excluded.
        lag: seconds by which the event loop was late, sampled a few times per second.
        queue: returns the numbers of admitted and of queued requests at scrape time.
        counters: loads, unloads, drains and restarts.
        write_failures: returns the number of failed writes to the database at scrape time.
        task_failures: returns the failures of background tasks at scrape time.
    """

    def __init__(self, snapshot: Callable[[], FleetSnapshot] | None = None) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        self._by_model: dict[str, list[Series]] = {}
        self.snapshot = snapshot
        self.disconnects = 0
        self.repairs: Counter[tuple[str, str, str]] = Counter()
        self.overhead = Histogram(_OVERHEAD)
        self.lag = Histogram(_LAG_SECONDS)
        self.queue: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.write_failures: Callable[[], int] = int
        self.task_failures: Callable[[], tuple[TaskFailures, ...]] = tuple
        self.counters = FleetCounters()

    def series(self, model: str, node: str) -> Series:
        """Return the counters of a model on a node, and create them if needed."""
        series = self._series.get((model, node))
        if series is None:
            series = self._series[model, node] = Series(model, node)
            self._by_model.setdefault(model, []).append(series)
        return series

    def count_repairs(self, repairs: Counter[str], model: str, harness: str) -> None:
        """Count the repairs of one response, by kind."""
        for kind, count in repairs.items():
            self.repairs[kind, model, harness] += count

    def totals(self, model: str) -> Totals:
        """Return the counters of a model, summed over its nodes."""
        rows = tuple(self._by_model.get(model, ()))
        ttfts = sorted(ttft for series in rows for ttft in list(series.recent_ttft))
        return Totals(
            requests=sum(s.requests for s in rows),
            errors=sum(s.errors.total() for s in rows),
            tokens_in=sum(s.tokens_in for s in rows),
            tokens_out=sum(s.tokens_out for s in rows),
            ttft_p50_ms=_quantile_ms(ttfts, 0.5),
            ttft_p95_ms=_quantile_ms(ttfts, 0.95),
        )

    @property
    def all_series(self) -> tuple[Series, ...]:
        """All series in the order of their creation."""
        return tuple(self._series.values())


def _quantile_ms(ascending: list[float], quantile: float) -> float | None:
    if not ascending:
        return None
    return round(ascending[min(len(ascending) - 1, int(len(ascending) * quantile))] * 1000, 1)


class FleetCounters:
    """Counters of what happened to instances.

    Attributes:
        loads: by model, node and outcome: "ready" or "failed".
        load_seconds: duration of the loads that became ready, by model and node.
        unloads: by node and reason: "eviction" (to free memory for another model), "idle", "operator", "defrag",
            "drain", "config_change" or "gpu_return".
        restarts: restarts of attached engines by node, harness and outcome: "restarted", "kept" if another gateway
            had it restarted, "busy" if its requests did not finish in time, or "failed".
        drains: by outcome: "idle" if the requests finished in time, otherwise "busy".
    """

    def __init__(self) -> None:
        self.loads: Counter[tuple[str, str, str]] = Counter()
        self.load_seconds: dict[tuple[str, str], Histogram] = {}
        self.unloads: Counter[tuple[str, str]] = Counter()
        self.drains: Counter[str] = Counter()
        self.restarts: Counter[tuple[str, str, str]] = Counter()

    def count_loads(self, node: str, before: NodeStatus | None, now: NodeStatus) -> None:
        """Count the loads that ended between two status reports of a node."""
        loading = _loading_instances(before)
        for info in now.models:
            if info.instance_id in loading:
                self._count_load(node, info)

    def _count_load(self, node: str, info: ModelInfo) -> None:
        if info.status is InstanceState.FAILED:
            self.loads[info.id, node, "failed"] += 1
        elif info.status is InstanceState.READY:
            self.loads[info.id, node, "ready"] += 1
            if info.load_seconds is not None:
                key = (info.id, node)
                self.load_seconds.setdefault(key, Histogram(_LOAD_SECONDS)).observe(
                    info.load_seconds
                )


def _loading_instances(status: NodeStatus | None) -> Mapping[InstanceId, ModelInfo]:
    models = () if status is None else status.models
    return {i.instance_id: i for i in models if i.status is InstanceState.LOADING}
