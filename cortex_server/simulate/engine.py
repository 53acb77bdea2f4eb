"""A discrete-event simulation around the real scheduler: requests, loads and drains happen in simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.schema.fleet import (
    DeviceView,
    FleetSnapshot,
    InstanceView,
    NodeState,
    NodeView,
)
from cortex_common.schema.instances import OUT_OF_MEMORY, InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import CapacityCache
from cortex_server.placement.eviction import StatsByModel
from cortex_server.placement.fit import Size, SizeKey, SizeSource, size_key
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.overlay import Overlay
from cortex_server.placement.pending_loads import Effects, LoadOrder
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState
from cortex_server.simulate.failures import FailureEvent, FailureKind, generate_failures
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
    """A simulated instance; everything but its load is instantaneous.

    Attributes:
        view: as its node reports it.
        in_flight: requests in flight.
        last_used: seconds of the trace at which its last request ended.
        evicted_for: the load that it is drained for.
        gone: it has crashed, so its requests have no end any more.
    """

    view: InstanceView
    in_flight: int = 0
    last_used: float = 0.0
    evicted_for: LoadOrder | None = None
    gone: bool = False

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
        out_of_memory: loads whose engine ran out of memory.
        crashes: instances that crashed while they served.
        absences: hosts that were away for a while.
        cut: requests that ended with their instance or their host.
        unanswered: requests that had no answer at the end; any of them is a livelock.
        most_in_vain: the most loads of one model in a row that failed.
    """

    requests: int = 0
    cold: int = 0
    loads: int = 0
    load_s: float = 0.0
    evictions: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    out_of_memory: int = 0
    crashes: int = 0
    absences: int = 0
    cut: int = 0
    unanswered: int = 0
    most_in_vain: int = 0


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
        self._failures = fleet.failures
        self._away: set[str] = set()
        self._sizes: dict[SizeKey, dict[str, Size]] = {}
        self._in_vain: dict[str, int] = {}
        self._tick_at: float | None = None
        self._scheduler = Scheduler(self, policy, self._new_id)

    def run(self, trace: Sequence[Request]) -> Outcome:
        """Play the trace to its end, until the last response."""
        end = trace[-1].at if trace else 0.0
        for failure in generate_failures(self._failures, end):
            self._schedule(failure.at, partial(self._fail, failure))
        for request in trace:
            self._advance_to(request.at)
            self._now = request.at
            self._arrive(request)
        while self._events:
            self._advance_to(self._events[0][0])
        self.outcome.unanswered = len(self._waiting)
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
        ready = [i for i in self._ready.get(request.model, ()) if i.view.node not in self._away]
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
        if instance.gone:
            self.outcome.cut += 1
            return
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
        remaining = (self._by_id[v] for v in order.plan.evictions if v in self._by_id)
        if not any(instance.in_flight for instance in remaining):
            self._schedule(UNLOAD_S, lambda: self._unloaded(order))

    def _unloaded(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            if candidate in self._by_id:
                self._remove(self._by_id[candidate])
        self.outcome.evictions += len(order.plan.evictions)
        self._scheduler.evicted(order.instance, self._now)
        self._step()

    @override
    def cancel_load(self, order: LoadOrder) -> None:
        pass  # a trace has no operators

    @override
    def cancel_eviction(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            if (instance := self._by_id.get(candidate)) is None:
                continue
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
            vram_granted_mb=share,
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
        self._schedule(took, lambda: self._end_load(instance, order, took))

    def _end_load(self, instance: Instance, order: LoadOrder, took: float) -> None:
        """Make a loaded instance ready, or have its engine run out of memory if its devices have less than it takes."""
        model, devices = self._models[order.model_config.id], instance.view.devices
        actual = -(-(model.actual_vram_mb or model.vram_mb) // len(devices))
        node = self._empty[instance.view.node]
        others = [i for i in self._by_node[node.name].values() if i is not instance]
        held = _held(others, len(node.devices))
        if any(node.devices[index].vram_total_mb - held[index] < actual for index in devices):
            self._run_out_of_memory(instance, order)
        else:
            self._in_vain.pop(model.id, None)
            self._learn(order, Size(actual, SizeSource.MEASURED))
            memory = (actual,) * len(devices)
            instance.view = replace(
                instance.view, vram_by_device=memory, vram_measured_mb=memory, vram_peak_mb=actual
            )
            self._become_ready(instance, took)

    def _run_out_of_memory(self, instance: Instance, order: LoadOrder) -> None:
        model = order.model_config.id
        self.outcome.out_of_memory += 1
        self._in_vain[model] = self._in_vain.get(model, 0) + 1
        self.outcome.most_in_vain = max(self.outcome.most_in_vain, self._in_vain[model])
        total = min(d.vram_total_mb for d in self._empty[order.plan.node].devices)
        needed = min(total, order.plan.shape.size.device_mb + 1)
        self._learn(order, Size(needed, SizeSource.NODE))
        instance.view = replace(
            instance.view,
            state=InstanceState.FAILED,
            failure=OUT_OF_MEMORY,
            error="out of memory",
            vram_used_mb=0,
            vram_by_device=(0,) * len(instance.view.devices),
        )
        self._stale.add(instance.view.node)
        self._step()
        self._remove(instance)
        self._step()

    def _learn(self, order: LoadOrder, size: Size) -> None:
        shape = order.plan.shape
        key = size_key(order.model_config, shape.kind, shape.devices)
        self._sizes.setdefault(key, {})[order.plan.card] = size

    def _remove(self, instance: Instance) -> None:
        view = instance.view
        del self._by_id[view.id]
        del self._by_node[view.node][view.id]
        ready = self._ready.get(view.model, [])
        if instance in ready:
            ready.remove(instance)
        self._stale.add(view.node)

    # -- failures --------------------------------------------------------------------------------

    def _fail(self, failure: FailureEvent) -> None:
        if failure.kind is FailureKind.CRASH:
            ready = [i for instances in self._ready.values() for i in instances]
            if ready:
                crashed = ready[int(failure.choice * len(ready))]
                crashed.gone = True
                self.outcome.crashes += 1
                self._remove(crashed)
                self._step()
        else:
            present = [name for name in self._empty if name not in self._away]
            if present:
                name = present[int(failure.choice * len(present))]
                self.outcome.absences += 1
                self._set_away(name, away=True)
                self._schedule(failure.seconds, lambda: self._set_away(name, away=False))

    def _set_away(self, name: str, *, away: bool) -> None:
        state = NodeState.UNREACHABLE if away else NodeState.UP
        if away:
            self._away.add(name)
        else:
            self._away.discard(name)
        self._empty[name] = replace(self._empty[name], state=state, seen_at=UNIX + self._now)
        self._stale.add(name)
        self._step()

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
            capacities = self._capacity_cache.capacities(snapshot, overlay)
            return ClusterState(capacities, snapshot.at, sizes=self._sizes, stats=stats)

        self._scheduler.step(view, self._now)
        if self._tick_at is None and self._has_unplanned_request():
            self._tick_at = self._now + TICK_S
            self._schedule(TICK_S, self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self._scheduler.queues or self._scheduler.loads:
            self._step()

    def _has_unplanned_request(self) -> bool:
        """Return whether time alone may change something; a pending load announces its end, unless its host is away."""
        if self._away and self._scheduler.queues:
            return True
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
    held = _held(instances, len(empty.devices))
    views = [i.snapshot_view() for i in instances]
    devices = tuple(_device(d, held[d.index]) for d in empty.devices)
    return replace(empty, devices=devices, instances=tuple(views))


def _held(instances: Iterable[Instance], devices: int) -> list[int]:
    """Return the MiB on each device that instances hold or were promised."""
    held = [0] * devices
    for instance in instances:
        for index, mb in zip(instance.view.devices, instance.view.vram_by_device, strict=True):
            held[index] += mb
    return held


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
