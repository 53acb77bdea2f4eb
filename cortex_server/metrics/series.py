"""What the gateway counts: plain numbers on the hot path, folded into Prometheus families at scrape.

A counter of prometheus_client costs a microsecond or two with its label lookup; an integer in a slot a
twentieth of that. So each model on each node has a `Series` that the data plane holds on to, and `families`
makes of them what Prometheus reads when it asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.instances import InstanceId, InstanceState, ModelInfo, NodeStatus


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


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_SPEEDS = (1, 2.5, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1000)
_OVERHEAD = (25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.05)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_RECENT = 128

NOWHERE = "none"
"""Label of a model or node that a request never got to: unknown names must not become labels."""


@dataclass(slots=True, eq=False)
class Series:
    """The numbers of one model on one node; they only grow.

    Attributes:
        errors: by error code of cortex, or "engine_<status>" for an engine's own.
        tokens_cached: of the prompt tokens, those that the engine had in its cache.
        queue: seconds that requests waited for their turn or for a load, of those that waited.
        between: seconds from one token to the next, the mean of each request.
        speed: tokens a second from the first on, of each request.
        recent_ttft: seconds to the first token of the latest requests that found a ready instance.
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
    between: Histogram = field(default_factory=lambda: Histogram(_TOKEN_SECONDS))
    speed: Histogram = field(default_factory=lambda: Histogram(_SPEEDS))
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
        tokens_cached: int = 0,
        queued: float = 0.0,
    ) -> None:
        """Count a request that ended here.

        Args:
            seconds: from its arrival to its last byte.
            ttft: seconds from its arrival to the first byte of the answer; None when none came.
            tokens_in: prompt tokens, as the engine counted.
            tokens_out: completion tokens, as the engine counted.
            cold: it waited for a load.
            error: code of what went wrong.
            tokens_cached: of the prompt tokens, those that the engine had in its cache.
            queued: seconds that it waited for its turn or for a load.
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
            # One token tells nothing about the time between tokens, nor does an answer that came as a whole.
            if tokens_out > 1 and seconds > ttft:
                self.between.observe((seconds - ttft) / (tokens_out - 1))
                self.speed.observe((tokens_out - 1) / (seconds - ttft))


@dataclass(frozen=True, slots=True)
class Totals:
    """The numbers of one model over all nodes."""

    requests: int
    errors: int
    tokens_in: int
    tokens_out: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


class Metrics:
    """All series of this gateway.

    Args:
        snapshot: the fleet at the moment of the scrape; set by the gateway once there is a fleet.

    Attributes:
        overhead: seconds from a whole request to its being on its way to an engine, where nothing was waited for.
        lag: seconds by which the event loop was late, looked at a few times a second.
        queue: requests that are worked on, and that wait for their turn, at the moment of the scrape.
        tally: what happened to instances.
    """

    def __init__(self, snapshot: Callable[[], FleetSnapshot] | None = None) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        self._of_model: dict[str, list[Series]] = {}
        self.snapshot = snapshot
        self.disconnects = 0
        self.repairs: Counter[tuple[str, str, str]] = Counter()
        self.overhead = Histogram(_OVERHEAD)
        self.lag = Histogram(_LAG)
        self.queue: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.counters = FleetCounters()

    def series(self, model: str, node: str) -> Series:
        """The series of a model on a node."""
        found = self._series.get((model, node))
        if found is None:
            found = self._series[model, node] = Series(model, node)
            self._of_model.setdefault(model, []).append(found)
        return found

    def repaired(self, repairs: Counter[str], model: str, harness: str) -> None:
        """Count what had to be mended in an answer."""
        for kind, count in repairs.items():
            self.repairs[kind, model, harness] += count

    def totals(self, model: str) -> Totals:
        """The sums of a model over its nodes."""
        mine = tuple(self._of_model.get(model, ()))
        ttfts = sorted(t for s in mine for t in list(s.recent_ttft))
        return Totals(
            requests=sum(s.requests for s in mine),
            errors=sum(s.errors.total() for s in mine),
            tokens_in=sum(s.tokens_in for s in mine),
            tokens_out=sum(s.tokens_out for s in mine),
            ttft_p50_ms=_quantile_ms(ttfts, 0.5),
            ttft_p95_ms=_quantile_ms(ttfts, 0.95),
        )

    @property
    def all_series(self) -> tuple[Series, ...]:
        """Every series so far, in the order of their first request."""
        return tuple(self._series.values())


def _quantile_ms(ascending: list[float], share: float) -> float | None:
    if not ascending:
        return None
    return round(ascending[min(len(ascending) - 1, int(len(ascending) * share))] * 1000, 1)


_LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)


class FleetCounters:
    """Plain counts that only grow.

    Attributes:
        loads: by model, node and outcome ("ready", "failed").
        load_seconds: of the loads that became ready, by model and node.
        unloads: by node and reason: "room" for evictions that make room, "idle", "operator", "defrag", "drain",
            "profile".
        restarts: of engines of somebody else, by node, harness and outcome: "restarted", "kept" when another
            gateway had it done, "busy" when requests did not end in time, "failed".
        drains: by outcome: "idle" when the requests ended in time, "busy" when they did not.
    """

    def __init__(self) -> None:
        self.loads: Counter[tuple[str, str, str]] = Counter()
        self.load_seconds: dict[tuple[str, str], Histogram] = {}
        self.unloads: Counter[tuple[str, str]] = Counter()
        self.drains: Counter[str] = Counter()
        self.restarts: Counter[tuple[str, str, str]] = Counter()

    def reported(self, node: str, before: NodeStatus | None, now: NodeStatus) -> None:
        """Count the loads that ended between two reports of a node."""
        loading = _loading(before)
        for info in now.models:
            if info.instance_id in loading:
                self._ended(node, info)

    def _ended(self, node: str, info: ModelInfo) -> None:
        if info.status is InstanceState.FAILED:
            self.loads[info.id, node, "failed"] += 1
        elif info.status is InstanceState.READY:
            self.loads[info.id, node, "ready"] += 1
            if info.load_seconds is not None:
                found = self.load_seconds.setdefault((info.id, node), Histogram(_LOAD_SECONDS))
                found.observe(info.load_seconds)


def _loading(status: NodeStatus | None) -> Mapping[InstanceId, ModelInfo]:
    models = () if status is None else status.models
    return {i.instance_id: i for i in models if i.status is InstanceState.LOADING}
