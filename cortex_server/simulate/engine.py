"""Discrete events around the real scheduler: requests, loads and drains happen when the clock gets to them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from cortex_common.errors import CortexError
from cortex_common.schema.fleet import DeviceView, FleetSnapshot, InstanceView, NodeView
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import ClusterCapacity, Overlay
from cortex_server.placement.eviction import StatsByModel
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState
from cortex_server.simulate.fleet import Model, SimulatedFleet
from cortex_server.simulate.trace import Request

UNIX = 1_700_000_000.0
"""When simulated time begins."""

TICK_S = 1.0
"""A gateway hears of its nodes once a second, so what waits is looked at so often."""

UNLOAD_S = 1.0
"""Seconds from the end of an engine until its memory is measured free."""

DEADLINE_S = 1800.0

StandingsAt = Callable[[float], StatsByModel]
"""How models stand at a time, in seconds of the trace."""


@dataclass(slots=True)
class Instance:
    """A simulated instance; everything but its load is instantaneous."""

    view: InstanceView
    in_flight: int = 0
    last_used: float = 0.0
    leaving: LoadOrder | None = None

    def shown(self) -> InstanceView:
        """As a snapshot has it; the same object while nothing has changed."""
        used = UNIX + self.last_used
        if self.view.in_flight != self.in_flight or self.view.last_used != used:
            self.view = replace(self.view, in_flight=self.in_flight, last_used=used)
        return self.view


@dataclass(slots=True)
class Outcome:
    """What happened.

    Attributes:
        cold: requests that waited for a load.
        loads: loads begun.
        load_s: seconds of all loads together.
        waits: seconds that each cold request waited.
        evictions: instances evicted.
        refused: requests that got an error.
        refusals: the same by the code of the error.
    """

    requests: int = 0
    cold: int = 0
    loads: int = 0
    load_s: float = 0.0
    evictions: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)


class Simulation:
    """One run of one policy; it is the scheduler's `Effects`.

    Args:
        fleet: hosts and models.
        policy: to be judged.
        standings: how models stand, from the past or from the future.
        on_request: told of every request as it arrives.
    """

    def __init__(
        self,
        fleet: SimulatedFleet,
        policy: Policy,
        stats: StandingsAt,
        on_request: Callable[[Request], None] = lambda _request: None,
    ) -> None:
        self.outcome = Outcome()
        self._models: dict[str, Model] = {m.id: m for m in fleet.models}
        self._model_configs = {m.id: m.to_config() for m in fleet.models}
        self._stats = stats
        self._on_request = on_request
        self._empty = {n.name: n for n in fleet.nodes()}
        self._nodes: dict[str, NodeView] = dict(self._empty)
        self._on: dict[str, dict[InstanceId, Instance]] = {name: {} for name in self._empty}
        self._stale: set[str] = set()
        self._ready: dict[str, list[Instance]] = {}
        self._by_id: dict[InstanceId, Instance] = {}
        self._rooms = ClusterCapacity()
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count(1)
        self._asked: dict[int, Request] = {}
        self._tick_at: float | None = None
        self._scheduler = Scheduler(self, policy, self._new_id)

    def run(self, trace: Iterable[Request]) -> Outcome:
        """Play the trace to its end, and until the last answer."""
        for request in trace:
            self._until(request.at)
            self._now = request.at
            self._arrive(request)
        while self._events:
            self._until(self._events[0][0])
        return self.outcome

    def _until(self, at: float) -> None:
        while self._events and self._events[0][0] <= at:
            when, _, happen = heapq.heappop(self._events)
            self._now = when
            happen()

    def _later(self, seconds: float, happen: Callable[[], None]) -> None:
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
            waiter = next(self._ids)
            self._asked[waiter] = request
            key, now = LoadKey(request.model), self._now
            fresh = key not in self._scheduler.waiting
            self._scheduler.ask(LoadRequest(waiter, model_config, key, now, now + DEADLINE_S), now)
            if fresh:
                self._step()

    def _serve(self, instance: Instance, request: Request) -> None:
        instance.in_flight += 1
        self._stale.add(instance.view.node)
        seconds = request.tokens / self._models[request.model].tokens_per_s
        self._later(seconds, lambda: self._end(instance))

    def _end(self, instance: Instance) -> None:
        instance.in_flight -= 1
        instance.last_used = self._now
        self._stale.add(instance.view.node)
        if not instance.in_flight and instance.leaving is not None:
            self._drained(instance.leaving)

    # -- the scheduler's effects -----------------------------------------------------------------

    def grant(self, waiter: int, instance: InstanceId) -> None:
        """See `Effects.grant`."""
        request = self._asked.pop(waiter)
        self.outcome.cold += 1
        self.outcome.waits.append(self._now - request.at)
        self._serve(self._by_id[instance], request)

    def refuse(self, waiter: int, error: CortexError) -> None:
        """See `Effects.refuse`."""
        del self._asked[waiter]
        self.outcome.refusals[error.code] = self.outcome.refusals.get(error.code, 0) + 1
        self.outcome.refused += 1

    def make_room(self, order: LoadOrder) -> None:
        """See `Effects.make_room`."""
        for candidate in order.plan.evictions:
            instance = self._by_id[candidate]
            instance.leaving = order
            self._ready[instance.view.model].remove(instance)
            self._stale.add(instance.view.node)
        self._drained(order)

    def _drained(self, order: LoadOrder) -> None:
        if not any(self._by_id[v].in_flight for v in order.plan.evictions):
            self._later(UNLOAD_S, lambda: self._unloaded(order))

    def _unloaded(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            instance = self._by_id.pop(candidate)
            del self._on[instance.view.node][candidate]
            self._stale.add(instance.view.node)
        self.outcome.evictions += len(order.plan.evictions)
        self._scheduler.room_made(order.instance, self._now)
        self._step()

    def cancel_load(self, order: LoadOrder) -> None:
        """See `Effects.take_back`: there are no operators here."""

    def abandon(self, order: LoadOrder) -> None:
        """See `Effects.abandon`; nobody in a trace goes away, so drains are never given up but by deadlines."""
        for candidate in order.plan.evictions:
            instance = self._by_id[candidate]
            instance.leaving = None
            self._ready[instance.view.model].append(instance)

    def start(self, order: LoadOrder) -> None:
        """See `Effects.start`."""
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
        self._on[place.node][order.instance] = instance
        self._stale.add(place.node)
        took = self._models[model].load_s
        self.outcome.loads += 1
        self.outcome.load_s += took
        self._scheduler.admitted(order.instance, order.instance, self._now)
        self._later(took, lambda: self._become_ready(instance, took))

    def _become_ready(self, instance: Instance, took: float) -> None:
        instance.view = replace(instance.view, state=InstanceState.READY, load_seconds=took)
        instance.last_used = self._now
        self._ready.setdefault(instance.view.model, []).append(instance)
        self._stale.add(instance.view.node)
        self._step()

    # -- what the scheduler sees -------------------------------------------------------------------

    def _step(self) -> None:
        snapshot = self._snapshot()
        stats = self._stats(self._now)

        def look(overlay: Overlay) -> ClusterState:
            return ClusterState(self._rooms.of(snapshot, overlay), snapshot.at, stats=stats)

        self._scheduler.step(look, self._now)
        if self._tick_at is None and self._somebody_has_no_load():
            self._tick_at = self._now + TICK_S
            self._later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        if self._scheduler.waiting:
            self._step()

    def _somebody_has_no_load(self) -> bool:
        """Whether time alone may change something; a load under way announces its end."""
        covered = {u.key for u in self._scheduler.loads}
        return any(q.key not in covered for q in self._scheduler.waiting.queues())

    def _snapshot(self) -> FleetSnapshot:
        for name in self._stale:
            self._nodes[name] = _seen(self._empty[name], tuple(self._on[name].values()))
        self._stale.clear()
        return FleetSnapshot(0, UNIX + self._now, tuple(self._nodes.values()))

    def _new_id(self, model: str) -> InstanceId:
        return InstanceId(f"{model}-{next(self._ids)}")


def _seen(empty: NodeView, instances: Sequence[Instance]) -> NodeView:
    """A node with its instances, and what its ledger would say."""
    held = [0] * len(empty.devices)
    views: list[InstanceView] = []
    for i in instances:
        for index, mb in zip(i.view.devices, i.view.vram_by_device, strict=True):
            held[index] += mb
        views.append(i.shown())
    devices = tuple(_device(d, held[d.index]) for d in empty.devices)
    return replace(empty, devices=devices, instances=tuple(views))


def _device(device: DeviceView, held_mb: int) -> DeviceView:
    if not held_mb:
        return device
    available = device.vram_total_mb - held_mb
    assert available >= 0, "placement over-committed a device"
    return DeviceView(
        index=device.index,
        uuid=device.uuid,
        kind=device.kind,
        name=device.name,
        vram_total_mb=device.vram_total_mb,
        vram_available_mb=available,
    )
