"""The table of endpoints that requests are routed by, kept in line with what nodes report."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cortex_common.clock import Clock
from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.schema.engine_traits import OPENAI, EngineTraits
from cortex_common.schema.hardware import HarnessInfo
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo
from cortex_server.fleet.circuit_breaker import Breaker, BreakerState
from cortex_server.metrics.series import Metrics, Series

REPORT_LAG_S = 2.5
"""A node queries its engines once a second, and repeats the result in every report until the next query."""


IDLE_LAG_S = 1.0
"""A report about idle time is this old at most, and rounded; smaller differences are no other use."""


@dataclass(slots=True)
class ForeignLoad:
    """Requests of other clients and gateways on an instance, derived from the total that its node reports.

    A report is up to `REPORT_LAG_S` old, so the peak of this gateway's requests during that time is subtracted: exact
    while
    this gateway is idle, and otherwise an underestimate, never an overestimate.

    Attributes:
        requests: requests of others, as far as known.
        own_peak: peak of this gateway's requests in the current interval.
    """

    requests: int = 0
    own_peak: int = 0
    _previous_own_peak: int = 0
    _since: float = 0.0

    def update(self, total: int, own: int, at: float) -> None:
        """Take a reported total, of which `own` requests are this gateway's now."""
        self.requests = max(0, total - max(self.own_peak, self._previous_own_peak))
        if at - self._since >= REPORT_LAG_S:
            self._previous_own_peak, self.own_peak, self._since = self.own_peak, own, at


@dataclass(slots=True)
class RequestCounts:
    """What one instance did for this gateway since it was loaded."""

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, tokens_in: int, tokens_out: int, *, failed: bool) -> None:
        """Count a finished request."""
        self.requests += 1
        self.errors += failed
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out


@dataclass(slots=True, eq=False)
class Endpoint:
    """A ready instance as the proxy sees it: where to send requests, and how busy it is.

    Attributes:
        id: the instance.
        model: its model.
        node: its node.
        url: base URL; url + "/v1/chat/completions" is a route.
        api_key: bearer token for requests to it; None for that of its node.
        slots: requests that the engine computes in parallel.
        series: counters of its model on its node.
        context: tokens that a request may use; None where unknown.
        response_headers: response header lines that name it.
        last_used: Unix seconds at which its last request ended, of this gateway or another as far as its node knows.
        served_as: name of the model that the engine expects.
        engine: kind of its engine.
        traits: how chat requests to this kind of engine must be worded.
        retries: a request that fails here before its first byte may be retried elsewhere.
        overflow: it is used only while the others are full.
        draining: it takes no new requests.
        in_flight: requests of this gateway in flight.
        idle: set when its last request ends; exists only while something waits for that.
        breaker: its circuit breaker.
        paused_until: when its breaker lets requests through again, by the clock's monotonic time.
        foreign: requests of others on it.
        counts: what it did for this gateway.
        predecessor: endpoint of the same instance before its node was renamed or moved, while it still has requests.
    """

    id: InstanceId
    model: ModelId
    node: str
    url: str
    slots: int
    series: Series
    context: int | None
    response_headers: bytes
    last_used: float
    served_as: str
    engine: str = ""
    traits: EngineTraits = OPENAI
    retries: bool = True
    overflow: bool = False
    api_key: str | None = field(default=None, repr=False)
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event | None = None
    breaker: Breaker = field(default_factory=Breaker)
    paused_until: float = 0.0
    foreign: ForeignLoad = field(default_factory=ForeignLoad)
    counts: RequestCounts = field(default_factory=RequestCounts)
    predecessor: Endpoint | None = None

    @property
    def is_paused(self) -> bool:
        """Whether its breaker is open."""
        return self.breaker.state is BreakerState.OPEN

    @property
    def total_in_flight(self) -> int:
        """Requests of this gateway on the instance, including those through its predecessors."""
        return self.in_flight + (
            self.predecessor.total_in_flight if self.predecessor is not None else 0
        )

    async def wait_idle(self) -> None:
        """Wait until it has no request in flight, or is gone."""
        if self.predecessor is not None:
            await self.predecessor.wait_idle()
        if self.in_flight:
            self.idle = self.idle or asyncio.Event()
            await self.idle.wait()

    def notify_idle(self) -> None:
        """Wake everything that waits for its last request."""
        if self.idle is not None:
            self.idle.set()
            self.idle = None


class RoutingTable:
    """Endpoints by model, instance and node.

    Args:
        clock: for when instances were used.
        metrics: the counters of each model on each node.
    """

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._by_id: dict[InstanceId, Endpoint] = {}
        self._by_node: dict[str, dict[InstanceId, Endpoint]] = {}
        self._removed: dict[InstanceId, Endpoint] = {}
        self._ready: dict[str, list[Endpoint]] = {}
        self._order: dict[str, int] = {}

    def ready(self, model: str) -> list[Endpoint]:
        """Return the endpoints of a model that take requests now; the caller must not change the list."""
        return self._ready.get(model, _NO_ENDPOINTS)

    def get(self, instance: InstanceId) -> Endpoint | None:
        """Return the endpoint of an instance that is ready, or was when its node last reported."""
        return self._by_id.get(instance)

    def endpoints(self) -> Iterable[tuple[Endpoint, bool]]:
        """Yield every endpoint, and whether it takes requests now."""
        ready = {endpoint for endpoints in self._ready.values() for endpoint in endpoints}
        here = (endpoint for endpoints in self._by_node.values() for endpoint in endpoints.values())
        return ((endpoint, endpoint in ready) for endpoint in here)

    def has_model(self, model: str) -> bool:
        """Return whether the model has an endpoint, even one that takes no requests now."""
        if self._ready.get(model):
            return True
        return any(endpoint.model == model for endpoint in self._by_id.values())

    def suspend(self, endpoint: Endpoint) -> None:
        """Send an endpoint no more requests until its node reports, or its breaker changes."""
        self._ready[endpoint.model] = [t for t in self.ready(endpoint.model) if t is not endpoint]

    def update_load(self, infos: Iterable[ModelInfo]) -> None:
        """Update how busy instances are from a node's report."""
        now, unix = self._clock.monotonic(), self._clock.unix()
        for info in infos:
            if (endpoint := self._by_id.get(info.instance_id)) is not None:
                endpoint.foreign.update(info.in_flight, endpoint.in_flight, now)
                if endpoint.foreign.requests:
                    endpoint.last_used = unix
                elif (
                    info.idle_s is not None and unix - info.idle_s > endpoint.last_used + IDLE_LAG_S
                ):
                    endpoint.last_used = unix - info.idle_s  # another gateway or client used it

    def update_node(
        self,
        entry: NodeEntry,
        infos: Iterable[ModelInfo],
        harnesses: Mapping[str, HarnessInfo],
        *,
        up: bool,
    ) -> None:
        """Update the endpoints of a node from its report.

        Endpoints of an unreachable node are kept, so that the requests still running on them are counted when it
        is back, but they get no new requests.

        Args:
            entry: the node's settings.
            infos: the instances that it reported.
            harnesses: the harnesses that it reported, by name.
            up: whether the node is reachable.
        """
        node = entry.name
        self._order.setdefault(node, len(self._order))
        previous = self._by_node.get(node, {})
        current: dict[InstanceId, Endpoint] = {}
        for info in infos:
            if info.status is InstanceState.READY and info.url is not None:
                endpoint = previous.get(info.instance_id)
                if endpoint is None or (endpoint.url, endpoint.api_key) != (info.url, info.api_key):
                    predecessor = endpoint or self._removed.pop(info.instance_id, None)
                    endpoint = self._new_endpoint(entry, info, info.url)
                    if predecessor is not None and predecessor.total_in_flight:
                        endpoint.predecessor = predecessor
                harness = harnesses.get(info.harness) or HarnessInfo(engine=info.harness)
                endpoint.engine, endpoint.traits = harness.engine, harness.traits
                current[info.instance_id] = endpoint
        self._by_node[node] = current
        self._by_id.update(current)
        for gone in previous.keys() - current.keys():
            self._remove(previous[gone])
        usable: dict[ModelId, list[Endpoint]] = {t.model: [] for t in previous.values()}
        for endpoint in current.values():
            usable.setdefault(endpoint.model, [])
            if up and _usable(endpoint):
                usable[endpoint.model].append(endpoint)
        for model, endpoints in usable.items():
            self._update_ready(model, node, endpoints)

    def use_nodes(self, nodes: Iterable[str]) -> None:
        """Keep only endpoints on these nodes; equally good endpoints rank in the order of the nodes."""
        self._order = {node: at for at, node in enumerate(nodes)}
        for node in self._by_node.keys() - self._order.keys():
            for endpoint in self._by_node.pop(node).values():
                self._remove(endpoint)
                self.suspend(endpoint)

    def _remove(self, endpoint: Endpoint) -> None:
        """Remove an endpoint that is gone from its node; a node configured under two names has it twice."""
        if self._by_id.get(endpoint.id) is endpoint:
            del self._by_id[endpoint.id]
        endpoint.notify_idle()
        self._removed[endpoint.id] = endpoint
        self._removed = {i: t for i, t in self._removed.items() if t.total_in_flight}

    def _update_ready(self, model: ModelId, node: str, usable: list[Endpoint]) -> None:
        endpoints = [t for t in self.ready(model) if t.node != node] + usable
        endpoints.sort(key=lambda t: self._order.get(t.node, 0))
        if endpoints:
            self._ready[model] = endpoints
        else:
            self._ready.pop(model, None)

    def _new_endpoint(self, entry: NodeEntry, info: ModelInfo, url: str) -> Endpoint:
        upstream = entry if isinstance(entry, UpstreamEntry) else None
        return Endpoint(
            id=info.instance_id,
            model=info.id,
            node=entry.name,
            url=url,
            slots=info.parallel or 1,
            series=self._metrics.series(info.id, entry.name),
            context=info.context,
            response_headers=instance_headers(entry.name, info.instance_id),
            last_used=self._clock.unix() - (info.idle_s or 0.0),
            served_as=info.served_as or info.id,
            api_key=info.api_key,
            retries=upstream is None or upstream.retries,
            overflow=upstream is not None and upstream.overflow,
            breaker=Breaker(disabled=upstream is not None and not upstream.breaker),
        )


def instance_headers(node: str, instance: str) -> bytes:
    """Return the response header lines that name an instance."""
    return f"x-cortex-node: {node}\r\nx-cortex-instance: {instance}\r\n".encode()


def _usable(endpoint: Endpoint) -> bool:
    return not endpoint.draining and not endpoint.is_paused


_NO_ENDPOINTS: list[Endpoint] = []
