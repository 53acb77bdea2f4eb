"""The one owner of what the gateway knows about its fleet.

Watchers report what nodes say; the data plane counts requests on `Endpoint`s; everybody else reads
immutable `FleetSnapshot`s. All of it runs on the event loop's thread, so there is no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cortex_common import __version__
from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.fleet import (
    FleetSnapshot,
    InstanceView,
    NodeState,
    NodeView,
    SettingsView,
)
from cortex_common.schema.hardware import Discovery
from cortex_common.schema.instances import InstanceId, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.circuit_breaker import BreakerState
from cortex_server.fleet.model_aliases import ModelAliases
from cortex_server.fleet.routing_table import Endpoint, RoutingTable
from cortex_server.fleet.views import (
    device_views,
    engine_view,
    instance_view,
    model_views,
    with_host,
    with_target,
)
from cortex_server.metrics.series import Metrics

log = logging.getLogger("cortex.fleet")


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
        self._endpoints = RoutingTable(clock, metrics)
        self._endpoints.use_nodes(self._nodes)
        self._views: dict[str, NodeView] = {}
        self._waiting: Callable[[ModelId], int] = lambda _model: 0
        self._listeners: list[Callable[[], None]] = []
        self._version = 0
        self.closed = False
        self.certificates: Callable[[], tuple[Certificate, ...]] = tuple
        self.settings: Callable[[], SettingsView] = SettingsView
        self._model_configs: dict[str, ModelConfig] = {}
        self.names = ModelAliases(())
        self.use_catalogue(catalogue)

    # -- what requests are routed by ---------------------------------------------------------

    def ready(self, model: str) -> list[Endpoint]:
        """Instances of the model that take requests now; not to be changed by the caller."""
        return self._endpoints.ready(model)

    def model_config(self, model: str) -> ModelConfig | None:
        """The profile of a model id."""
        return self._model_configs.get(model)

    def known(self, name: str) -> ModelId | None:
        """The model id that a client's name means: a profile, an alias, or whatever is loaded."""
        found = self.names.resolve(name)
        if found is None and self._endpoints.holds(name):
            return ModelId(name)
        return found

    def unknown(self, name: str) -> CortexError:
        """The error for a name that means nothing here, with what it may have been meant to be."""
        return self.names.not_found(name, {endpoint.model for endpoint, _ in self._endpoints.all()})

    def acquire(self, endpoint: Endpoint) -> None:
        """Count a request that starts on an instance."""
        endpoint.in_flight += 1
        endpoint.others.most = max(endpoint.others.most, endpoint.in_flight)
        self._views.pop(endpoint.node, None)
        if endpoint.breaker.standing is BreakerState.ON_TRIAL:
            self._endpoints.spare(endpoint)  # one request is the trial, the others go elsewhere

    def release(self, endpoint: Endpoint) -> None:
        """Count its end; whoever drains the instance wakes with the last one."""
        endpoint.in_flight -= 1
        endpoint.last_used = self._clock.unix()
        self._views.pop(endpoint.node, None)
        if not endpoint.in_flight:
            endpoint.wake()

    def answered(self, endpoint: Endpoint) -> None:
        """The instance did its work; this ends a trial."""
        if endpoint.breaker.succeeded():
            event(log, "instance_recovered", node=endpoint.node, instance=endpoint.id)
            self._changed(endpoint.node)

    def failed(self, endpoint: Endpoint, reason: str) -> None:
        """The instance did not; after a few failures in a row it is left alone for a while."""
        pause = endpoint.breaker.failed(reason)
        if pause is None:
            return
        event(
            log,
            "instance_left_alone",
            logging.WARNING,
            node=endpoint.node,
            instance=endpoint.id,
            seconds=pause,
            reason=reason,
        )
        asyncio.get_running_loop().call_later(pause, self._try_again, endpoint)
        self._changed(endpoint.node)

    def untried(self, endpoint: Endpoint) -> None:
        """A trial ended without a verdict, because its client left: the next request is the trial."""
        if endpoint.breaker.standing is BreakerState.ON_TRIAL:
            self._changed(endpoint.node)

    def _try_again(self, endpoint: Endpoint) -> None:
        endpoint.breaker.try_again()
        self._changed(endpoint.node)

    @property
    def endpoints(self) -> Iterable[tuple[Endpoint, bool]]:
        """Every endpoint, and whether it takes requests now."""
        return self._endpoints.all()

    # -- draining ----------------------------------------------------------------------------

    def set_draining(self, instance: InstanceId, draining: bool) -> None:
        """Keep new requests away from an instance, or let them come again."""
        if (
            endpoint := self._endpoints.get(instance)
        ) is not None and endpoint.draining != draining:
            endpoint.draining = draining
            self._changed(endpoint.node)

    async def when_idle(self, instance: InstanceId) -> None:
        """Wait until this gateway has no request under way on the instance."""
        if (endpoint := self._endpoints.get(instance)) is not None:
            await endpoint.when_idle()

    # -- what is reported --------------------------------------------------------------------

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the profiles."""
        self._model_configs = {model_config.id: model_config for model_config in catalogue.models}
        self.names = ModelAliases(catalogue.models, self._unheard)
        self._views.clear()
        self._announce()

    def use_nodes(self, entries: tuple[NodeEntry, ...]) -> None:
        """Replace the nodes of the configuration; what one at the same endpoint told is kept, and what is cordoned."""
        known = self._nodes
        self._nodes = {entry.name: _Node(entry) for entry in entries}
        for name, old in known.items():
            new = self._nodes.get(name)
            if new is None:
                continue
            if _same_place(new.entry, old.entry):
                old.entry = new.entry
                self._nodes[name] = old
            else:
                new.cordoned = old.cordoned
        self._endpoints.use_nodes(self._nodes)
        for record in self._nodes.values():
            self._take(record)
        self._announce()

    def close(self) -> None:
        """Say that nothing more will change, so that whoever follows the fleet ends."""
        self.closed = True
        self._announce()

    def discovered(self, node: str, discovery: Discovery) -> None:
        """A node told what it is."""
        self._nodes[node].discovery = discovery
        self._changed(node)

    def reported(self, node: str, status: NodeStatus) -> None:
        """A node told how it is: it is up, and these are its instances."""
        record = self._nodes[node]
        if record.state is not NodeState.UP:
            event(log, "node_up", node=node, models=len(status.models))
        self.metrics.counters.count_loads(node, record.status, status)
        record.status, record.state, record.reason = status, NodeState.UP, None
        record.seen_at = self._clock.unix()
        self._endpoints.told(status.models)
        self._changed(node)

    def lost(self, node: str, reason: str) -> None:
        """A node can't be reached; its instances are not routed to until it is back."""
        record = self._nodes[node]
        if record.state is not NodeState.UNREACHABLE:
            event(log, "node_unreachable", logging.WARNING, node=node, reason=reason)
        record.state, record.reason = NodeState.UNREACHABLE, reason
        self._changed(node)

    def set_cordoned(self, node: str, cordoned: bool) -> None:
        """Place no new instances on a node, or place them again."""
        self._nodes[node].cordoned = cordoned
        self._changed(node)

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
        self._announce()

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
        bare = self.bare
        models = model_views(self._model_configs.values(), bare.nodes, self._waiting, self.metrics)
        settings = self.settings()
        return replace(bare, models=models, certificates=self.certificates(), settings=settings)

    @property
    def bare(self) -> FleetSnapshot:
        """The same without its models: what placement looks at, for a fraction of the work.

        The view of a node is made anew only once something on it has changed, so whoever remembers what follows
        from a view may go by its identity.
        """
        return FleetSnapshot(
            version=self._version,
            at=self._clock.unix(),
            nodes=tuple(map(self._view, self._nodes.values())),
            gateway_version=__version__,
            started_at=self.started_at,
        )

    def _view(self, record: _Node) -> NodeView:
        name = record.entry.name
        if (view := self._views.get(name)) is None:
            view = self._views[name] = self._node_view(record)
        return view

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
            view = with_host(view, found)
        if record.status is None:
            return view
        instances = tuple(self._instance_view(record, info) for info in record.status.models)
        return replace(
            view,
            devices=() if found is None else device_views(found, record.status.health),
            instances=instances,
            engines=tuple(map(engine_view, record.status.attached)),
            failures=record.status.failures,
            stopping_s=record.status.stopping_s or 0.0,
        )

    def _instance_view(self, record: _Node, info: ModelInfo) -> InstanceView:
        endpoint = self._endpoints.get(info.instance_id)
        model_config = self._model_configs.get(info.id)
        pinned = self.is_upstream(record.entry.name) or (
            model_config is not None and record.entry.name in model_config.pinned_on
        )
        view = instance_view(info, record.entry.name, pinned=pinned)
        return view if endpoint is None else with_target(view, endpoint)

    # -- keeping the table -------------------------------------------------------------------

    def _changed(self, node: str) -> None:
        if (record := self._nodes.get(node)) is not None:
            self._take(record)
        self._announce()

    def _take(self, record: _Node) -> None:
        self._views.pop(record.entry.name, None)
        infos = record.status.models if record.status is not None else ()
        harnesses = record.discovery.harness_info if record.discovery is not None else {}
        self._endpoints.keep(record.entry, infos, harnesses, up=record.state is NodeState.UP)

    @property
    def _unheard(self) -> tuple[str, ...]:
        return tuple(n for n, r in self._nodes.items() if r.state is NodeState.CONNECTING)

    def _announce(self) -> None:
        self._version += 1
        self.names.unheard = self._unheard
        for listener in self._listeners:
            listener()


def _same_place(new: NodeEntry, old: NodeEntry) -> bool:
    """Whether what an old entry's node said still holds; an upstream's instances depend on all of its entry."""
    if isinstance(new, UpstreamEntry):
        return new == old
    return new.endpoint == old.endpoint and not isinstance(old, UpstreamEntry)
