"""The one owner of what the gateway knows about its fleet.

Watchers report what nodes say; the data plane counts requests on `Target`s; everybody else reads
immutable `FleetSnapshot`s. All of it runs on the event loop's thread, so there is no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from cortex_common import __version__
from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelProfile
from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.fleet import (
    DeviceView,
    FleetSnapshot,
    InstanceView,
    NodeState,
    NodeView,
)
from cortex_common.hardware import Discovery
from cortex_common.logs import event
from cortex_common.models import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.core.breaker import Breaker, Standing
from cortex_server.core.names import Names
from cortex_server.dialects.traits import EngineTraits, traits_of
from cortex_server.fleet.views import device_views, instance_view, model_views
from cortex_server.metrics import Metrics, Series

log = logging.getLogger("cortex.fleet")


@dataclass(slots=True, eq=False)
class Counts:
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
class Target:
    """One ready instance as the data plane uses it: where to send, and how busy it is.

    Attributes:
        url: base URL, so that url + "/v1/chat/completions" is the route.
        slots: requests that the engine computes side by side.
        in_flight: requests of this gateway under way on it.
        last_used: Unix seconds at which its last request ended.
        series: the counters of its model on its node.
        served_as: the model's name as its engine knows it.
        retries: a request that fails here before its first byte may go elsewhere.
        harness: the kind of its engine.
        traits: how that must be spoken to.
        context: tokens that a request may use; None where unknown.
        labels: the response headers that name it.
        breaker: its record of failures.
        counts: what it did.
    """

    id: InstanceId
    model: ModelId
    node: str
    url: str
    slots: int
    series: Series
    harness: str
    context: int | None
    traits: EngineTraits
    labels: tuple[tuple[bytes, bytes], ...]
    last_used: float
    served_as: str
    retries: bool = True
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    breaker: Breaker = field(default_factory=Breaker)
    counts: Counts = field(default_factory=Counts)


@dataclass(slots=True)
class _Node:
    entry: NodeEntry
    state: NodeState = NodeState.CONNECTING
    reason: str | None = None
    seen_at: float = 0.0
    discovery: Discovery | None = None
    status: NodeStatus | None = None
    cordoned: bool = False


class Fleet:
    """Live state of all nodes, and the table of ready instances that requests are routed by.

    Args:
        nodes: of the configuration.
        catalogue: the models that can be asked for.
        clock: for timestamps.
        metrics: where the counters of each model on each node live.
    """

    def __init__(
        self,
        nodes: tuple[NodeEntry, ...],
        catalogue: Catalogue,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._nodes = {entry.name: _Node(entry) for entry in nodes}
        self._clock = clock
        self.metrics = metrics
        self.started_at = clock.unix()
        self._targets: dict[InstanceId, Target] = {}
        self._ready: dict[str, list[Target]] = {}
        self._waiting: Callable[[ModelId], int] = lambda _model: 0
        self._listeners: list[Callable[[], None]] = []
        self._version = 0
        self.closed = False
        self._profiles: dict[str, ModelProfile] = {}
        self.names = Names(())
        self.use_catalogue(catalogue)

    # -- what requests are routed by ---------------------------------------------------------

    def ready(self, model: str) -> list[Target]:
        """Instances of the model that take requests now; not to be changed by the caller."""
        return self._ready.get(model, _NOBODY)

    def profile(self, model: str) -> ModelProfile | None:
        """The profile of a model id."""
        return self._profiles.get(model)

    def known(self, name: str) -> ModelId | None:
        """The model id that a client's name means: a profile, an alias, or whatever is loaded."""
        found = self.names.resolve(name)
        if found is None and (name in self._ready or self._held(name)):
            return ModelId(name)
        return found

    def _held(self, model: str) -> bool:
        """Whether an instance of the model is there, be it one that takes no requests now."""
        return any(target.model == model for target in self._targets.values())

    def acquire(self, target: Target) -> None:
        """Count a request that starts on an instance."""
        target.in_flight += 1
        target.idle.clear()
        if target.breaker.standing is Standing.ON_TRIAL:
            self._ready[target.model].remove(
                target
            )  # one request is the trial, the others go elsewhere

    def release(self, target: Target) -> None:
        """Count its end; whoever drains the instance wakes with the last one."""
        target.in_flight -= 1
        target.last_used = self._clock.unix()
        if not target.in_flight:
            target.idle.set()

    def answered(self, target: Target) -> None:
        """The instance did its work; this ends a trial."""
        if target.breaker.succeeded():
            event(log, "instance_recovered", node=target.node, instance=target.id)
            self._changed()

    def failed(self, target: Target, reason: str) -> None:
        """The instance did not; after a few failures in a row it is left alone for a while."""
        pause = target.breaker.failed(reason)
        if pause is None:
            return
        event(
            log,
            "instance_left_alone",
            logging.WARNING,
            node=target.node,
            instance=target.id,
            seconds=pause,
            reason=reason,
        )
        asyncio.get_running_loop().call_later(pause, self._try_again, target)
        self._changed()

    def untried(self, target: Target) -> None:
        """A trial ended without a verdict, because its client left: the next request is the trial."""
        if target.breaker.standing is Standing.ON_TRIAL:
            self._changed()

    def _try_again(self, target: Target) -> None:
        target.breaker.try_again()
        self._changed()

    # -- draining ----------------------------------------------------------------------------

    def set_draining(self, instance: InstanceId, draining: bool) -> None:
        """Keep new requests away from an instance, or let them come again."""
        if (target := self._targets.get(instance)) is not None and target.draining != draining:
            target.draining = draining
            self._changed()

    async def when_idle(self, instance: InstanceId) -> None:
        """Wait until this gateway has no request under way on the instance."""
        if (target := self._targets.get(instance)) is not None:
            await target.idle.wait()

    # -- what is reported --------------------------------------------------------------------

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the profiles."""
        self._profiles = {profile.id: profile for profile in catalogue.models}
        self.names = Names(catalogue.models)
        self._changed()

    def use_nodes(self, entries: tuple[NodeEntry, ...]) -> None:
        """Replace the nodes of the configuration; what is known of one at the same endpoint is kept."""
        known = self._nodes
        self._nodes = {entry.name: _Node(entry) for entry in entries}
        for name, old in known.items():
            new = self._nodes.get(name)
            if new is not None and _same_place(new.entry, old.entry):
                old.entry = new.entry
                self._nodes[name] = old
        self._changed()

    def close(self) -> None:
        """Say that nothing more will change, so that whoever follows the fleet ends."""
        self.closed = True
        self._changed()

    def discovered(self, node: str, discovery: Discovery) -> None:
        """A node told what it is."""
        self._nodes[node].discovery = discovery
        self._changed()

    def reported(self, node: str, status: NodeStatus) -> None:
        """A node told how it is: it is up, and these are its instances."""
        record = self._nodes[node]
        if record.state is not NodeState.UP:
            event(log, "node_up", node=node, models=len(status.models))
        self.metrics.tally.reported(node, record.status, status)
        record.status, record.state, record.reason = status, NodeState.UP, None
        record.seen_at = self._clock.unix()
        self._changed()

    def lost(self, node: str, reason: str) -> None:
        """A node can't be reached; its instances are not routed to until it is back."""
        record = self._nodes[node]
        if record.state is not NodeState.UNREACHABLE:
            event(log, "node_unreachable", logging.WARNING, node=node, reason=reason)
        record.state, record.reason = NodeState.UNREACHABLE, reason
        self._changed()

    def set_cordoned(self, node: str, cordoned: bool) -> None:
        """Place no new instances on a node, or place them again."""
        self._nodes[node].cordoned = cordoned
        self._changed()

    def count_waiting(self, waiting: Callable[[ModelId], int]) -> None:
        """Tell where the number of requests that wait for a model is known."""
        self._waiting = waiting

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change; it must not block."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `on_change`."""
        self._listeners.remove(listener)

    def touch(self) -> None:
        """Say that something which a snapshot shows has changed outside."""
        self._changed()

    # -- what is read ------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Grows with each change that is announced; in-flight counts alone do not announce."""
        return self._version

    @property
    def entries(self) -> Mapping[str, NodeEntry]:
        """The configured nodes by name."""
        return {name: record.entry for name, record in self._nodes.items()}

    def is_upstream(self, node: str) -> bool:
        """Whether a node has no neuron, so that nothing is loaded or ended there."""
        record = self._nodes.get(node)
        return record is not None and isinstance(record.entry, UpstreamEntry)

    def state(self, node: str) -> NodeState:
        """Whether a node can be used."""
        return self._nodes[node].state

    @property
    def snapshot(self) -> FleetSnapshot:
        """The fleet at this moment."""
        nodes = tuple(self._node_view(record) for record in self._nodes.values())
        models = model_views(self._profiles.values(), nodes, self._waiting, self.metrics)
        return FleetSnapshot(
            version=self._version,
            at=self._clock.unix(),
            nodes=nodes,
            models=models,
            gateway_version=__version__,
            started_at=self.started_at,
        )

    def _node_view(self, record: _Node) -> NodeView:
        view = NodeView(
            name=record.entry.name,
            endpoint=record.entry.endpoint,
            state=record.state,
            reason=record.reason,
            seen_at=record.seen_at,
            cordoned=record.cordoned,
            upstream=isinstance(record.entry, UpstreamEntry),
        )
        found = record.discovery
        if found is not None:
            view = replace(
                view,
                hostname=found.hostname,
                os=found.os,
                kernel=found.kernel,
                driver_version=found.driver_version,
                cuda_version=found.cuda_version,
                neuron_version=found.neuron_version,
                harnesses=found.harnesses,
                warnings=tuple(w.message for w in found.warnings),
            )
        if record.status is None:
            return view
        devices: tuple[DeviceView, ...] = ()
        if found is not None:
            devices = device_views(found, record.status.health)
        instances = tuple(self._instance_view(record, info) for info in record.status.models)
        return replace(view, devices=devices, instances=instances)

    def _instance_view(self, record: _Node, info: ModelInfo) -> InstanceView:
        target = self._targets.get(info.instance_id)
        profile = self._profiles.get(info.id)
        pinned = self.is_upstream(record.entry.name) or (
            profile is not None and record.entry.name in profile.pinned_on
        )
        view = instance_view(info, record.entry.name, pinned=pinned)
        if target is None:
            return view
        state = InstanceState.DRAINING if target.draining else view.state
        failing = target.breaker.standing is not Standing.CLOSED
        return replace(
            view,
            state=state,
            in_flight=target.in_flight,
            last_used=target.last_used,
            requests=target.counts.requests,
            errors=target.counts.errors,
            tokens_in=target.counts.tokens_in,
            tokens_out=target.counts.tokens_out,
            failing=target.breaker.reason if failing else None,
        )

    # -- keeping the table -------------------------------------------------------------------

    def _changed(self) -> None:
        self._version += 1
        self._keep_targets()
        for listener in self._listeners:
            listener()

    def _ready_infos(self) -> Iterator[tuple[_Node, ModelInfo]]:
        for record in self._nodes.values():
            for info in record.status.models if record.status is not None else ():
                if info.status is InstanceState.READY and info.url is not None:
                    yield record, info

    def _keep_targets(self) -> None:
        """Bring the routing table in line with what nodes said.

        Targets of a node that can't be reached are kept, so that the requests that still run on them are
        counted when it is back, but nothing new is sent there.
        """
        targets: dict[InstanceId, Target] = {}
        ready: dict[str, list[Target]] = {}
        for record, info in self._ready_infos():
            assert info.url is not None
            target = self._targets.get(info.instance_id)
            if target is None or target.url != info.url:
                target = self._new_target(record.entry, info, info.url)
            targets[info.instance_id] = target
            usable = record.state is NodeState.UP and not target.draining
            if usable and target.breaker.standing is not Standing.OPEN:
                ready.setdefault(info.id, []).append(target)
        for gone in self._targets.keys() - targets.keys():
            self._targets[gone].idle.set()
        self._targets, self._ready = targets, ready

    def _new_target(self, entry: NodeEntry, info: ModelInfo, url: str) -> Target:
        upstream = entry if isinstance(entry, UpstreamEntry) else None
        target = Target(
            id=info.instance_id,
            model=info.id,
            node=entry.name,
            url=url,
            slots=info.parallel or 1,
            series=self.metrics.series(info.id, entry.name),
            harness=info.harness,
            context=info.context,
            traits=traits_of(info.harness),
            labels=(
                (b"x-cortex-node", entry.name.encode()),
                (b"x-cortex-instance", info.instance_id.encode()),
            ),
            last_used=self._clock.unix(),
            served_as=info.served_as or info.id,
            retries=upstream is None or upstream.retries,
            breaker=Breaker(off=upstream is not None and not upstream.breaker),
        )
        target.idle.set()
        return target


def _same_place(new: NodeEntry, old: NodeEntry) -> bool:
    """Whether what an old entry's node said still holds; an upstream's instances depend on all of its entry."""
    if isinstance(new, UpstreamEntry):
        return new == old
    return new.endpoint == old.endpoint and not isinstance(old, UpstreamEntry)


_NOBODY: list[Target] = []
