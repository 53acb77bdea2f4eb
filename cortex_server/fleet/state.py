"""The single owner of what the gateway knows about its fleet.

Watchers report what nodes say, the proxy counts requests on `Endpoint`s, and everything else reads immutable
`FleetSnapshot`s. All of it runs on the event loop's thread, so there is no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from cortex_common import __version__
from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.directives import Directive
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
from cortex_server.fleet.node_reports import routing_refusal
from cortex_server.fleet.routing_table import Endpoint, RoutingTable
from cortex_server.fleet.views import (
    device_views,
    engine_view,
    instance_view,
    model_views,
    with_endpoint,
    with_host,
)
from cortex_server.metrics.series import Metrics

log = logging.getLogger("cortex.fleet")


@dataclass(slots=True)
class _Node:
    entry: NodeEntry
    state: NodeState = NodeState.CONNECTING
    reason: str | None = None
    seen_at: float = 0.0
    absent_since: float = 0.0
    discovery: Discovery | None = None
    status: NodeStatus | None = None
    directives: tuple[Directive, ...] = ()
    cordoned: bool = False


class Fleet:
    """Live state of all nodes, and the endpoints that requests are routed by.

    Args:
        nodes: the configured nodes.
        catalogue: the model configs.
        clock: for timestamps.
        metrics: the counters of each model on each node.

    Attributes:
        on_use: called with an endpoint when a request on it begins or ends.
        report_use: reports to a node how its instances are used; see `UsageReporter.flush`.
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
        self.on_use: Callable[[Endpoint], None] = lambda _endpoint: None
        self.report_use: Callable[[str], Awaitable[None]] = _report_nothing
        self._endpoints = RoutingTable(clock, metrics)
        self._endpoints.use_nodes(self._nodes)
        self._views: dict[str, NodeView] = {}
        self._waiting: Callable[[ModelId], int] = lambda _model: 0
        self._listeners: list[Callable[[], None]] = []
        self._version = 0
        self.closed = False
        self.certificates: Callable[[], tuple[Certificate, ...]] = tuple
        self.settings: Callable[[], SettingsView] = SettingsView
        self.warnings: Callable[[], tuple[str, ...]] = tuple
        self._model_configs: dict[str, ModelConfig] = {}
        self.aliases = ModelAliases(())
        self.use_catalogue(catalogue)

    # -- routing ---------------------------------------------------------------------------

    def ready(self, model: str) -> list[Endpoint]:
        """Return the endpoints of a model that take requests now; the caller must not change the list."""
        return self._endpoints.ready(model)

    def model_config(self, model: str) -> ModelConfig | None:
        """Return the model config of a model id."""
        return self._model_configs.get(model)

    def resolve_model(self, name: str) -> ModelId | None:
        """Return the model that a client's name refers to: a model config, an alias, or a loaded model."""
        found = self.aliases.resolve(name)
        if found is None and self._endpoints.has_model(name):
            return ModelId(name)
        return found

    def model_not_found(
        self, name: str, is_visible: Callable[[str], bool] = lambda _name: True
    ) -> CortexError:
        """Return the error for a name that refers to no model, with the nearest names that the caller may see."""
        loaded = {endpoint.model for endpoint, _ in self._endpoints.endpoints()}
        return self.aliases.not_found_error(name, loaded, is_visible)

    def begin_request(self, endpoint: Endpoint) -> None:
        """Count a request that starts on an endpoint."""
        endpoint.in_flight += 1
        endpoint.foreign.own_peak = max(endpoint.foreign.own_peak, endpoint.in_flight)
        self._views.pop(endpoint.node, None)
        self.on_use(endpoint)
        if endpoint.breaker.state is BreakerState.HALF_OPEN:
            self._endpoints.suspend(endpoint)  # one request is the trial; the others go elsewhere

    def end_request(self, endpoint: Endpoint) -> None:
        """Count the end of a request; wakes whatever drains the instance after the last one."""
        endpoint.in_flight -= 1
        endpoint.last_used = self._clock.unix()
        self._views.pop(endpoint.node, None)
        self.on_use(endpoint)
        if not endpoint.in_flight:
            endpoint.notify_idle()

    def record_success(self, endpoint: Endpoint) -> None:
        """Record that an instance answered a request; this closes its breaker."""
        if endpoint.breaker.record_success():
            event(log, "breaker_closed", node=endpoint.node, instance=endpoint.id)
            self._changed(endpoint.node)

    def record_failure(self, endpoint: Endpoint, reason: str) -> None:
        """Record that an instance failed a request; several failures in a row open its breaker."""
        self._pause(endpoint, "breaker_opened", endpoint.breaker.record_failure(reason), reason)

    def cool_down(self, endpoint: Endpoint, seconds: float | None, reason: str) -> None:
        """Send a busy instance no requests for a while.

        Args:
            endpoint: The instance.
            seconds: How long it asked for, such as with Retry-After. None if it did not say: then it is left alone
                only if another instance can take its requests.
            reason: What it said.
        """
        if seconds is None and len(self.ready(endpoint.model)) < 2:
            self.release_trial(endpoint)
            return
        delay_s = endpoint.breaker.cool_down(seconds, reason)
        self._pause(endpoint, "instance_cooling_down", delay_s, reason)

    def _pause(self, endpoint: Endpoint, name: str, delay_s: float | None, reason: str) -> None:
        """Take an endpoint whose breaker has opened out of the routing table until the delay has elapsed."""
        if delay_s is None:
            return
        event(
            log,
            name,
            logging.WARNING,
            node=endpoint.node,
            instance=endpoint.id,
            seconds=delay_s,
            reason=reason,
        )
        now = self._clock.monotonic()
        endpoint.paused_until = now + delay_s
        asyncio.get_running_loop().call_later(delay_s, self._end_pause, endpoint)
        self._changed(endpoint.node)

    def paused(self, model: str) -> list[Endpoint]:
        """Return the endpoints of a model that get no requests for now because their breaker is open."""
        return [e for e, _ in self._endpoints.endpoints() if e.model == model and e.is_paused]

    def pause_left_s(self, endpoint: Endpoint) -> float:
        """Return the seconds until a paused endpoint gets requests again."""
        return max(0.0, endpoint.paused_until - self._clock.monotonic())

    def release_trial(self, endpoint: Endpoint) -> None:
        """End a trial without an outcome because its client left: the next request is the trial."""
        if endpoint.breaker.state is BreakerState.HALF_OPEN:
            self._changed(endpoint.node)

    def _end_pause(self, endpoint: Endpoint) -> None:
        endpoint.breaker.end_pause()
        self._changed(endpoint.node)

    @property
    def endpoints(self) -> Iterable[tuple[Endpoint, bool]]:
        """Every endpoint, and whether it takes requests now."""
        return self._endpoints.endpoints()

    # -- draining ----------------------------------------------------------------------------

    def set_draining(self, instance: InstanceId, draining: bool) -> None:
        """Keep new requests away from an instance, or let them through again."""
        if (
            endpoint := self._endpoints.get(instance)
        ) is not None and endpoint.draining != draining:
            endpoint.draining = draining
            self._changed(endpoint.node)

    async def wait_idle(self, instance: InstanceId) -> None:
        """Wait until this gateway has no request in flight on the instance."""
        if (endpoint := self._endpoints.get(instance)) is not None:
            await endpoint.wait_idle()

    # -- updates ---------------------------------------------------------------------------

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the model configs."""
        self._model_configs = {model_config.id: model_config for model_config in catalogue.models}
        self.aliases = ModelAliases(catalogue.models, self._pending_nodes)
        for record in self._nodes.values():
            self._refresh_node(record)
        self._notify()

    def use_nodes(self, entries: tuple[NodeEntry, ...]) -> None:
        """Replace the configured nodes; cordons are kept, and reports of nodes whose endpoint is unchanged."""
        previous = self._nodes
        self._nodes = {entry.name: _Node(entry) for entry in entries}
        for name, old in previous.items():
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
            self._refresh_node(record)
        self._notify()

    def close(self) -> None:
        """Mark the fleet as closed, so that event streams end."""
        self.closed = True
        self._notify()

    def update_discovery(self, node: str, discovery: Discovery) -> None:
        """Take a node's description of itself."""
        self._nodes[node].discovery = discovery
        self._changed(node)

    def update_status(self, node: str, status: NodeStatus) -> None:
        """Take a node's status report: the node is up, and these are its instances."""
        record = self._nodes[node]
        if (twin := self._twin(node, status.node_id)) is not None:
            self.mark_unreachable(node, _twin_reason(twin))
            return
        came_up = record.state is not NodeState.UP
        if came_up:
            event(log, "node_up", node=node, models=len(status.models))
        self.metrics.counters.count_loads(node, record.status, status)
        record.status, record.state, record.reason = status, NodeState.UP, None
        record.seen_at = self._clock.unix()
        if came_up or record.directives != status.directives:
            record.directives = status.directives
        self._endpoints.update_load(status.models)
        self._changed(node)

    def _twin(self, node: str, node_id: str) -> str | None:
        """Return the name under which another connection already reaches the same neuron, if there is one."""
        if not node_id:
            return None
        others = (
            (n, r.status) for n, r in self._nodes.items() if r.state is NodeState.UP and n != node
        )
        return next((n for n, s in others if s is not None and s.node_id == node_id), None)

    def mark_unreachable(self, node: str, reason: str) -> None:
        """Mark a node as unreachable; its instances get no requests until it is back."""
        record = self._nodes[node]
        if record.state is not NodeState.UNREACHABLE:
            event(log, "node_unreachable", logging.WARNING, node=node, reason=reason)
            record.absent_since = self._clock.monotonic()
        record.state, record.reason = NodeState.UNREACHABLE, reason
        self._changed(node)

    def set_cordoned(self, node: str, cordoned: bool) -> None:
        """Place no new instances on a node, or place them again."""
        if self._nodes[node].cordoned != cordoned:
            self._nodes[node].cordoned = cordoned
            self._changed(node)

    def reported_directives(self) -> Iterator[tuple[str, tuple[Directive, ...]]]:
        """Yield each node that is up with the directives of its last report; the same object as long as it is equal."""
        for name, record in self._nodes.items():
            if record.state is NodeState.UP and not self.is_upstream(name):
                yield name, record.directives

    def use_waiting_counter(self, waiting: Callable[[ModelId], int]) -> None:
        """Set the function that returns the number of requests waiting for a model."""
        self._waiting = waiting

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change; it must not block."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `on_change`."""
        self._listeners.remove(listener)

    def notify(self) -> None:
        """Announce a change outside of the fleet that a snapshot shows."""
        self._notify()

    # -- views -----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Increases with each announced change; in-flight counts alone announce none."""
        return self._version

    @property
    def entries(self) -> Mapping[str, NodeEntry]:
        """The configured nodes by name."""
        return {name: record.entry for name, record in self._nodes.items()}

    def is_upstream(self, node: str) -> bool:
        """Return whether a node has no neuron, so that nothing can be loaded or unloaded there."""
        record = self._nodes.get(node)
        return record is not None and isinstance(record.entry, UpstreamEntry)

    def is_unreachable(self, node: str) -> bool:
        """Return whether a node is configured but can't be reached."""
        record = self._nodes.get(node)
        return record is not None and record.state is NodeState.UNREACHABLE

    def state(self, node: str) -> NodeState:
        """Return the state of a node."""
        return self._nodes[node].state

    def is_up(self, node: str) -> bool:
        """Return whether a node is configured and up."""
        record = self._nodes.get(node)
        return record is not None and record.state is NodeState.UP

    @property
    def snapshot(self) -> FleetSnapshot:
        """The fleet now."""
        bare = self.node_snapshot
        models = model_views(self._model_configs.values(), bare.nodes, self._waiting, self.metrics)
        return replace(
            bare,
            models=models,
            certificates=self.certificates(),
            settings=self.settings(),
            warnings=self.warnings(),
        )

    @property
    def node_snapshot(self) -> FleetSnapshot:
        """The fleet now without its models: what placement needs, at a fraction of the cost.

        The view of a node is rebuilt only once the node has changed, so caches can compare views by identity.
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
        if record.state is NodeState.UNREACHABLE:
            absent_s = float(int(self._clock.monotonic() - record.absent_since))
            if absent_s != view.absent_s:
                view = self._views[name] = replace(view, absent_s=absent_s)
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
        if refusal := routing_refusal(info, record.entry, model_config):
            return replace(view, failing=refusal, routable=False)
        return view if endpoint is None else with_endpoint(view, endpoint)

    # -- routing table ---------------------------------------------------------------------

    def _changed(self, node: str) -> None:
        if (record := self._nodes.get(node)) is not None:
            self._refresh_node(record)
        self._notify()

    def _refresh_node(self, record: _Node) -> None:
        self._views.pop(record.entry.name, None)
        infos = [
            info
            for info in (record.status.models if record.status is not None else ())
            if routing_refusal(info, record.entry, self._model_configs.get(info.id)) is None
        ]
        harnesses = record.discovery.harness_info if record.discovery is not None else {}
        self._endpoints.update_node(record.entry, infos, harnesses, up=record.state is NodeState.UP)

    @property
    def _pending_nodes(self) -> tuple[str, ...]:
        return tuple(n for n, r in self._nodes.items() if r.state is NodeState.CONNECTING)

    def _notify(self) -> None:
        self._version += 1
        self.aliases.pending_nodes = self._pending_nodes
        for listener in self._listeners:
            listener()


async def _report_nothing(_node: str) -> None:
    pass


def _twin_reason(name: str) -> str:
    return (
        f"it is the same neuron as {name}: remove one of the two from cortex.toml; if its state_dir was copied from "
        "that node, remove the file node-id in the copy"
    )


def _same_place(new: NodeEntry, old: NodeEntry) -> bool:
    """Return whether the reports of an old entry's node still apply; for an upstream, the whole entry matters."""
    if isinstance(new, UpstreamEntry):
        return new == old
    return new.endpoint == old.endpoint and not isinstance(old, UpstreamEntry)
