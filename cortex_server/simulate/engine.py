"""A discrete-event simulation around the real scheduler: requests, loads and drains happen in simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, InstanceView, NodeView
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import CapacityCache, Overlay
from cortex_server.placement.eviction import StatsByModel
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.pending_loads import Effects, LoadOrder
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState
from cortex_server.simulate.fleet import Model, SimulatedFleet
from cortex_server.simulate.trace import Request

UNIX = 1_700_000_000.0
"""Unix seconds at which simulated time begins."""

TICK_S = 1.0
"""A gateway hears from its nodes once a second, so waiting requests are reconsidered that often."""

UNLOAD_S = 1.0
"""Seconds from the end of an engine until its memory is measured as free."""

DEADLINE_S = 1800.0

StatsAt = Callable[[float], StatsByModel]
"""Returns the statistics of models at a time, in seconds of the trace."""


@dataclass(slots=True)
class Instance:
    """A simulated instance; everything but its load is instantaneous."""

    view: InstanceView
    in_flight: int = 0
    last_used: float = 0.0
    evicted_for: LoadOrder | None = None

    def snapshot_view(self) -> InstanceView:
        """Return the instance for a snapshot; the same object while nothing has changed."""
        used = UNIX + self.last_used
        if self.view.in_flight != self.in_flight or self.view.last_used != used:
            self.view = replace(self.view, in_flight=self.in_flight, last_used=used)
        return self.view


@dataclass(slots=True)
class Outcome:
    """What happened in a simulation.

    Attributes:
        requests: requests in total.
        cold: requests that waited for a load.
        loads: loads started.
        load_s: seconds of all loads together.
        evictions: instances evicted.
        refused: requests that got an error.
        waits: seconds that each cold request waited.
        refusals: refused requests by error code.
    """

    requests: int = 0
    cold: int = 0
    loads: int = 0
    load_s: float = 0.0
    evictions: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)


class Simulation(Effects):
    """One run of one policy.

    Args:
        fleet: hosts and models.
        policy: the policy under test.
        stats: returns the statistics of models at a time, from the past or from the future.
        on_request: called with every request as it arrives.
    """

    def __init__(
        self,
        fleet: SimulatedFleet,
        policy: Policy,
        stats: StatsAt,
        on_request: Callable[[Request], None] = lambda _request: None,
    ) -> None:
        self.outcome = Outcome()
        self._models: dict[str, Model] = {m.id: m for m in fleet.models}
        self._model_configs = {m.id: m.to_config() for m in fleet.models}
        self._stats = stats
        self._on_request = on_request
        self._empty = {n.name: n for n in fleet.nodes()}
        self._nodes: dict[str, NodeView] = dict(self._empty)
        self._by_node: dict[str, dict[InstanceId, Instance]] = {name: {} for name in self._empty}
        self._stale: set[str] = set()
        self._ready: dict[str, list[Instance]] = {}
        self._by_id: dict[InstanceId, Instance] = {}
        self._capacity_cache = CapacityCache()
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count(1)
        self._waiting: dict[int, Request] = {}
        self._tick_at: float | None = None
        self._scheduler = Scheduler(self, policy, self._new_id)

    def run(self, trace: Iterable[Request]) -> Outcome:
        """Play the trace to its end, until the last response."""
        for request in trace:
            self._advance_to(request.at)
            self._now = request.at
            self._arrive(request)
        while self._events:
            self._advance_to(self._events[0][0])
        return self.outcome

    def _advance_to(self, at: float) -> None:
        while self._events and self._events[0][0] <= at:
            when, _, happen = heapq.heappop(self._events)
            self._now = when
            happen()

    def _schedule(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._ids), happen))

    # -- requests ------------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        self.outcome.requests += 1
        self._on_request(request)
        ready = self._ready.get(request.model)
        if ready:
            self._serve(min(ready, key=lambda i: i.in_flight), request)
        elif (model_config := self._model_configs.get(request.model)) is None:
            self.outcome.refused += 1
        else:
            request_id = next(self._ids)
            self._waiting[request_id] = request
            key, now = LoadKey(request.model), self._now
            is_first = key not in self._scheduler.queues
            self._scheduler.enqueue(
                LoadRequest(request_id, model_config, key, now, now + DEADLINE_S), now
            )
            if is_first:
                self._step()

    def _serve(self, instance: Instance, request: Request) -> None:
        instance.in_flight += 1
        self._stale.add(instance.view.node)
        seconds = request.tokens / self._models[request.model].tokens_per_s
        self._schedule(seconds, lambda: self._end(instance))

    def _end(self, instance: Instance) -> None:
        instance.in_flight -= 1
        instance.last_used = self._now
        self._stale.add(instance.view.node)
        if not instance.in_flight and instance.evicted_for is not None:
            self._check_drained(instance.evicted_for)

    # -- the scheduler's effects -----------------------------------------------------------------

    @override
    def grant(self, request_id: int, instance: InstanceId) -> None:
        request = self._waiting.pop(request_id)
        self.outcome.cold += 1
        self.outcome.waits.append(self._now - request.at)
        self._serve(self._by_id[instance], request)

    @override
    def refuse(self, request_id: int, error: CortexError) -> None:
        del self._waiting[request_id]
        self.outcome.refusals[error.code] = self.outcome.refusals.get(error.code, 0) + 1
        self.outcome.refused += 1

    @override
    def evict(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            instance = self._by_id[candidate]
            instance.evicted_for = order
            self._ready[instance.view.model].remove(instance)
            self._stale.add(instance.view.node)
        self._check_drained(order)

    def _check_drained(self, order: LoadOrder) -> None:
        if not any(self._by_id[v].in_flight for v in order.plan.evictions):
            self._schedule(UNLOAD_S, lambda: self._unloaded(order))

    def _unloaded(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            instance = self._by_id.pop(candidate)
            del self._by_node[instance.view.node][candidate]
            self._stale.add(instance.view.node)
        self.outcome.evictions += len(order.plan.evictions)
        self._scheduler.evicted(order.instance, self._now)
        self._step()

    @override
    def cancel_load(self, order: LoadOrder) -> None:
        pass  # a trace has no operators

    @override
    def cancel_eviction(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            instance = self._by_id[candidate]
            instance.evicted_for = None
            self._ready[instance.view.model].append(instance)

    @override
    def start_load(self, order: LoadOrder) -> None:
        model, place = order.model_config.id, order.plan
        share = place.shape.size.device_mb
        view = InstanceView(
            id=order.instance,
            model=ModelId(model),
            node=place.node,
            harness="simulated",
            state=InstanceState.LOADING,
            devices=place.devices,
            vram_used_mb=share * len(place.devices),
            vram_by_device=(share,) * len(place.devices),
            started_at=UNIX + self._now,
        )
        instance = Instance(view, last_used=self._now)
        self._by_id[order.instance] = instance
        self._by_node[place.node][order.instance] = instance
        self._stale.add(place.node)
        took = self._models[model].load_s
        self.outcome.loads += 1
        self.outcome.load_s += took
        self._scheduler.admitted(order.instance, order.instance, self._now)
        self._schedule(took, lambda: self._become_ready(instance, took))

    def _become_ready(self, instance: Instance, took: float) -> None:
        instance.view = replace(instance.view, state=InstanceState.READY, load_seconds=took)
        instance.last_used = self._now
        self._ready.setdefault(instance.view.model, []).append(instance)
        self._stale.add(instance.view.node)
        self._step()

    # -- cluster state ------------------------------------------------------------------------

    def _step(self) -> None:
        snapshot = self._snapshot()
        stats = self._stats(self._now)

        def view(overlay: Overlay) -> ClusterState:
            return ClusterState(
                self._capacity_cache.capacities(snapshot, overlay), snapshot.at, stats=stats
            )

        self._scheduler.step(view, self._now)
        if self._tick_at is None and self._has_unplanned_request():
            self._tick_at = self._now + TICK_S
            self._schedule(TICK_S, self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self._scheduler.queues:
            self._step()

    def _has_unplanned_request(self) -> bool:
        """Return whether time alone may change something; a pending load announces its end."""
        covered = {u.key for u in self._scheduler.loads}
        return any(q.key not in covered for q in self._scheduler.queues.by_age())

    def _snapshot(self) -> FleetSnapshot:
        for name in self._stale:
            self._nodes[name] = _node_view(self._empty[name], tuple(self._by_node[name].values()))
        self._stale.clear()
        return FleetSnapshot(0, UNIX + self._now, tuple(self._nodes.values()))

    def _new_id(self, model: str) -> InstanceId:
        return InstanceId(f"{model}-{next(self._ids)}")


def _node_view(empty: NodeView, instances: Sequence[Instance]) -> NodeView:
    """Return a node with its instances and the memory that its ledger would report."""
    held = [0] * len(empty.devices)
    views: list[InstanceView] = []
    for i in instances:
        for index, mb in zip(i.view.devices, i.view.vram_by_device, strict=True):
            held[index] += mb
        views.append(i.snapshot_view())
    devices = tuple(_device(d, held[d.index]) for d in empty.devices)
    return replace(empty, devices=devices, instances=tuple(views))


def _device(device: DeviceView, held_mb: int) -> DeviceView:
    if not held_mb:
        return device
    available = device.vram_total_mb - held_mb
    assert available >= 0, "placement overcommitted a device"
    return DeviceView(
        index=device.index,
        uuid=device.uuid,
        kind=device.kind,
        name=device.name,
        vram_total_mb=device.vram_total_mb,
        vram_available_mb=available,
    )
