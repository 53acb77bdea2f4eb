"""The table of ready instances that requests are routed by, brought in line with what nodes say."""

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

LATELY_S = 2.5
"""A node asks its engines once a second, and tells what it heard with every report until it asks again."""


@dataclass(slots=True)
class ForeignLoad:
    """Requests that others have on an instance, worked out from the sum that its node tells.

    What the node tells is up to `LATELY_S` old, so the most that this gateway had under way in that time is taken
    off: right when this gateway is idle, and too little, never too much, when it is not.

    Attributes:
        now: requests of others, as far as is known.
        most: the most of this gateway's since the time was last divided.
    """

    now: int = 0
    most: int = 0
    _most_before: int = 0
    _since: float = 0.0

    def told(self, total: int, own: int, at: float) -> None:
        """A node told how many requests an instance has, of which this gateway has `own` now."""
        self.now = max(0, total - max(self.most, self._most_before))
        if at - self._since >= LATELY_S:
            self._most_before, self.most, self._since = self.most, own, at


@dataclass(slots=True)
class RequestCounts:
    """What one instance did for this gateway since it was loaded."""

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, tokens_in: int, tokens_out: int, *, failed: bool) -> None:
        """Count a request that ended there."""
        self.requests += 1
        self.errors += failed
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out


@dataclass(slots=True, eq=False)
class Endpoint:
    """One ready instance as the data plane uses it: where to send, and how busy it is.

    Attributes:
        url: base URL, so that url + "/v1/chat/completions" is the route.
        slots: requests that the engine computes side by side.
        in_flight: requests of this gateway under way on it.
        last_used: Unix seconds at which its last request ended.
        series: the counters of its model on its node.
        served_as: the model's name as its engine knows it.
        retries: a request that fails here before its first byte may go elsewhere.
        overflow: it is asked only while the others are full.
        engine: the kind of its engine.
        traits: how chat requests to that must be worded.
        context: tokens that a request may use; None where unknown.
        labels: the lines of a response's head that name it.
        breaker: its record of failures.
        others: requests of others on it.
        counts: what it did.
        idle: set with the end of its last request; there only while somebody waits for that.
        former: the same instance as it was reached before its node was renamed or moved; requests may still be on it.
    """

    id: InstanceId
    model: ModelId
    node: str
    url: str
    slots: int
    series: Series
    context: int | None
    labels: bytes
    last_used: float
    served_as: str
    engine: str = ""
    traits: EngineTraits = OPENAI
    retries: bool = True
    overflow: bool = False
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event | None = None
    breaker: Breaker = field(default_factory=Breaker)
    others: ForeignLoad = field(default_factory=ForeignLoad)
    counts: RequestCounts = field(default_factory=RequestCounts)
    former: Endpoint | None = None

    @property
    def under_way(self) -> int:
        """Requests of this gateway on the instance, whichever way they reach it."""
        return self.in_flight + (self.former.under_way if self.former is not None else 0)

    async def when_idle(self) -> None:
        """Wait until it has no request under way, or is gone."""
        if self.former is not None:
            await self.former.when_idle()
        if self.in_flight:
            self.idle = self.idle or asyncio.Event()
            await self.idle.wait()

    def wake(self) -> None:
        """Whoever waits for its last request need not wait any longer."""
        if self.idle is not None:
            self.idle.set()
            self.idle = None


class RoutingTable:
    """See the module.

    Args:
        clock: for when instances were used.
        metrics: where the counters of each model on each node live.
    """

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._by_id: dict[InstanceId, Endpoint] = {}
        self._on: dict[str, dict[InstanceId, Endpoint]] = {}
        self._left: dict[InstanceId, Endpoint] = {}
        self._ready: dict[str, list[Endpoint]] = {}
        self._order: dict[str, int] = {}

    def ready(self, model: str) -> list[Endpoint]:
        """Instances of the model that take requests now; not to be changed by the caller."""
        return self._ready.get(model, _NOBODY)

    def get(self, instance: InstanceId) -> Endpoint | None:
        """The target of an instance that is ready, or was when its node was last heard."""
        return self._by_id.get(instance)

    def all(self) -> Iterable[tuple[Endpoint, bool]]:
        """Every target, and whether it takes requests now."""
        ready = {endpoint for endpoints in self._ready.values() for endpoint in endpoints}
        here = (endpoint for endpoints in self._on.values() for endpoint in endpoints.values())
        return ((endpoint, endpoint in ready) for endpoint in here)

    def holds(self, model: str) -> bool:
        """Whether an instance of the model is there, be it one that takes no requests now."""
        if self._ready.get(model):
            return True
        return any(endpoint.model == model for endpoint in self._by_id.values())

    def spare(self, endpoint: Endpoint) -> None:
        """Send it nothing more until its node, or its standing, changes."""
        self._ready[endpoint.model] = [t for t in self.ready(endpoint.model) if t is not endpoint]

    def told(self, infos: Iterable[ModelInfo]) -> None:
        """A node told how busy its instances are."""
        now, unix = self._clock.monotonic(), self._clock.unix()
        for info in infos:
            if (endpoint := self._by_id.get(info.instance_id)) is not None:
                endpoint.others.told(info.in_flight, endpoint.in_flight, now)
                if endpoint.others.now:
                    endpoint.last_used = unix

    def keep(
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
        before = self._on.get(node, {})
        here: dict[InstanceId, Endpoint] = {}
        for info in infos:
            if info.status is InstanceState.READY and info.url is not None:
                endpoint = before.get(info.instance_id)
                if endpoint is None or endpoint.url != info.url:
                    former = endpoint or self._left.pop(info.instance_id, None)
                    endpoint = self._new(entry, info, info.url)
                    endpoint.former = former if former is not None and former.under_way else None
                harness = harnesses.get(info.harness) or HarnessInfo(engine=info.harness)
                endpoint.engine, endpoint.traits = harness.engine, harness.traits
                here[info.instance_id] = endpoint
        self._on[node] = here
        self._by_id.update(here)
        for gone in before.keys() - here.keys():
            self._forget(before[gone])
        for model in {t.model for t in before.values()} | {t.model for t in here.values()}:
            self._keep_ready(model, node, here, up=up)

    def use_nodes(self, nodes: Iterable[str]) -> None:
        """Keep only what is on these nodes; of equals, those of earlier nodes come first."""
        self._order = {node: at for at, node in enumerate(nodes)}
        for node in self._on.keys() - self._order.keys():
            for endpoint in self._on.pop(node).values():
                self._forget(endpoint)
                self.spare(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        """It is gone from its node; a node that is configured under two names has it twice."""
        if self._by_id.get(endpoint.id) is endpoint:
            del self._by_id[endpoint.id]
        endpoint.wake()
        self._left[endpoint.id] = endpoint
        self._left = {i: t for i, t in self._left.items() if t.under_way}

    def _keep_ready(
        self, model: ModelId, node: str, here: dict[InstanceId, Endpoint], *, up: bool
    ) -> None:
        found = [t for t in self.ready(model) if t.node != node]
        found += [t for t in here.values() if up and t.model == model and _usable(t)]
        found.sort(key=lambda t: self._order.get(t.node, 0))
        if found:
            self._ready[model] = found
        else:
            self._ready.pop(model, None)

    def _new(self, entry: NodeEntry, info: ModelInfo, url: str) -> Endpoint:
        upstream = entry if isinstance(entry, UpstreamEntry) else None
        return Endpoint(
            id=info.instance_id,
            model=info.id,
            node=entry.name,
            url=url,
            slots=info.parallel or 1,
            series=self._metrics.series(info.id, entry.name),
            context=info.context,
            labels=labels_of(entry.name, info.instance_id),
            last_used=self._clock.unix(),
            served_as=info.served_as or info.id,
            retries=upstream is None or upstream.retries,
            overflow=upstream is not None and upstream.overflow,
            breaker=Breaker(off=upstream is not None and not upstream.breaker),
        )


def labels_of(node: str, instance: str) -> bytes:
    """The lines of a response's head that name an instance."""
    return f"x-cortex-node: {node}\r\nx-cortex-instance: {instance}\r\n".encode()


def _usable(endpoint: Endpoint) -> bool:
    return not endpoint.draining and endpoint.breaker.standing is not BreakerState.OPEN


_NOBODY: list[Endpoint] = []
