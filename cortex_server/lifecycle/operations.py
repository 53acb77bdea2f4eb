"""The operator's operations: each validates, calls the controller, and returns the outcome."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError, NotFound
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, ModelState
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_common.schema.model_detail import ModelDetail, SizeMeasurement
from cortex_common.schema.operations import (
    DrainNodeRequest,
    EvictModelRequest,
    ForgetSizeRequest,
    ForgetSizeResult,
    LoadModelRequest,
    ModelResult,
    NodeRequest,
    NodeResult,
    PinModelRequest,
    PinView,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import (
    ApplyDefragRequest,
    DecisionView,
    DefragRequest,
    DefragView,
    DrainPlan,
    PlanLoadRequest,
    PlannedEviction,
    PlanView,
)
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.lifecycle.defrag import DefragRunner
from cortex_server.lifecycle.engine_restarts import EngineRestarts
from cortex_server.lifecycle.lookup import Lookup
from cortex_server.lifecycle.node_drain import NodeDrain
from cortex_server.lifecycle.views import eviction, plan_view
from cortex_server.placement.fit import PlacementConstraints
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.records import Pin
from cortex_server.placement.state import PlacementRequest

log = logging.getLogger("cortex.operator")


class Operations:
    """The operator's operations.

    Args:
        fleet: live state of the nodes.
        controller: loads, evicts and unloads.
        restarts: restarts attached engines.
        clock: for durations.
    """

    def __init__(
        self, fleet: Fleet, controller: Controller, restarts: EngineRestarts, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._controller = controller
        self._directives = controller.directives
        self._lookup = Lookup(controller.operator_snapshot, fleet, controller.waiting_requests)
        self._clock = clock
        self._node_drain = NodeDrain(fleet, controller)
        self._defrag = DefragRunner(
            fleet,
            controller,
            restarts,
            clock,
            self._lookup.model_config,
            self._lookup.require_neuron,
        )
        self._load_tasks: set[asyncio.Task[InstanceId]] = set()

    def snapshot(self) -> FleetSnapshot:
        """Return the fleet as operators see it; see `Controller.operator_snapshot`."""
        return self._controller.operator_snapshot()

    async def load(self, request: LoadModelRequest) -> ModelResult:
        """Load a model.

        Raises:
            ModelNotFound: no model config has this name.
            CortexError: as `Controller.acquire`; without `wait` only what is known immediately.
        """
        model_config = self._lookup.model_config(request.model)
        if request.node is not None:
            self._lookup.require_neuron(request.node)
        started = self._clock.monotonic()
        key = LoadKey(
            model_config.id,
            PlacementConstraints(request.node, request.devices),
            replica=request.replica,
        )
        event(log, "load_requested", model=model_config.id, node=request.node)
        task = asyncio.create_task(self._load(request, model_config, key))
        self._load_tasks.add(task)
        task.add_done_callback(partial(self._load_ended, model_config.id))
        if request.wait:
            instance = await task
            return self._ready(model_config, instance, self._clock.monotonic() - started)
        # Two rounds: the first enqueues the request; after the second it is answered or loading.
        await self._controller.barrier()
        await asyncio.sleep(0)
        if task.done():
            return self._ready(model_config, task.result(), self._clock.monotonic() - started)
        progress = self._controller.progress(model_config.id)
        nodes = (progress.node,) if progress is not None and progress.node else ()
        return ModelResult(model=model_config.id, state=ModelState.LOADING, nodes=nodes)

    async def _load(
        self, request: LoadModelRequest, model_config: ModelConfig, key: LoadKey
    ) -> InstanceId:
        """Load a model; its pin and its time to live hold once that has succeeded."""
        instance = await self._controller.ensure_loaded(
            model_config, key, timeout_s=request.timeout_s, force=True
        )
        model = ModelId(model_config.id)
        if request.ttl_s is not None:
            self._directives.set_ttl(model, request.ttl_s)
        if request.pin:
            self._directives.pin(Pin(model, request.node, None))
        return instance

    async def unload(self, request: UnloadModelRequest) -> ModelResult:
        """Drain and unload all instances of a model.

        Raises:
            ModelNotFound: no model config and no instance has this name.
            InstanceBusy: requests continued for longer than `drain_timeout_s`; nothing was unloaded.
        """
        model = self._lookup.model(request.model)
        started = self._clock.monotonic()
        views = self._lookup.instances(model)
        event(log, "unload_requested", model=model, instances=len(views))
        await self._controller.unload(model, views, request.drain_timeout_s, cancel_requests=True)
        return ModelResult(
            model=model,
            state=ModelState.UNLOADED,
            nodes=tuple(dict.fromkeys(v.node for v in views)),
            seconds=round(self._clock.monotonic() - started, 3),
        )

    async def evict(self, request: EvictModelRequest) -> ModelResult:
        """Drain and unload one instance; the model is loaded again when it is requested.

        Raises:
            NotFound: there is no such instance or node.
            Conflict: it is pinned, or busy for longer than `drain_timeout_s`.
        """
        started = self._clock.monotonic()
        view = self._lookup.evictable_instance(request)
        model = view.model
        event(log, "eviction_requested", model=model, node=view.node, instance=view.id)
        await self._controller.unload(
            model, (view,), request.drain_timeout_s, cancel_requests=False
        )
        remaining = [
            i for i in self._fleet.snapshot.instances() if i.model == model and i.id != view.id
        ]
        return ModelResult(
            model=model,
            state=ModelState.READY
            if any(i.state is InstanceState.READY for i in remaining)
            else ModelState.UNLOADED,
            nodes=(view.node,),
            seconds=round(self._clock.monotonic() - started, 3),
            vram_mb=view.vram_used_mb,
        )

    async def plan_evict(self, request: EvictModelRequest) -> PlannedEviction:
        """Return which instance would be evicted, and whom that disturbs. Changes nothing.

        Raises:
            NotFound: there is no such instance or node.
            Conflict: it is pinned.
        """
        return eviction(self._lookup.evictable_instance(request), self._clock.unix())

    async def pin(self, request: PinModelRequest) -> PinView:
        """Protect a model from eviction, for a time or for good.

        Raises:
            ModelNotFound: there is no such model.
            NodeNotFound: there is no such node.
            Unavailable: it is pinned, but the pin could not be saved and ends with the gateway.
        """
        model = self._lookup.model(request.model)
        if request.node is not None:
            self._lookup.require_neuron(request.node)
        until = None if request.for_s is None else self._clock.unix() + request.for_s
        ends = None if until is None else datetime.fromtimestamp(until, UTC)
        event(
            log,
            "pinned",
            model=model,
            node=request.node,
            until=ends and ends.isoformat("T", "seconds"),
        )
        self._directives.pin(Pin(model, request.node, until))
        await self._directives.saved()
        return PinView(model=model, node=request.node, until=until)

    async def unpin(self, request: UnpinModelRequest) -> tuple[PinView, ...]:
        """Remove pins of a model; return those that remain.

        Raises:
            NotFound: it has no such pin.
            Unavailable: the pin is removed, but this could not be saved; a restart of the gateway restores it.
        """
        model = self._lookup.model(request.model)
        if not self._directives.unpin(model, request.node):
            raise NotFound(
                f"model {model!r} has no such pin",
                hints=("pins from pinned_on in models.toml are changed there",),
            )
        event(log, "unpinned", model=model, node=request.node)
        await self._directives.saved()
        return self._pins_of(model)

    async def forget_size(self, request: ForgetSizeRequest) -> ForgetSizeResult:
        """Forget the measured sizes of a model, here and on the nodes that can be reached.

        Raises:
            ModelNotFound: no model config and no instance has this name.
        """
        model = self._lookup.model(request.model)
        event(log, "sizes_forgotten", model=model)
        nodes, unreachable = await self._controller.forget_size(model)
        return ForgetSizeResult(model=model, nodes=nodes, unreachable=unreachable)

    async def plan_load(self, request: PlanLoadRequest) -> PlanView:
        """Return what would be done to load a model, waiting included. Changes nothing.

        Raises:
            ModelNotFound: no model config has this name.
        """
        model_config, planning = self._lookup.model_config(request.model), self._controller.planning
        if request.node is not None:
            self._lookup.require_neuron(request.node)
        placement_request = PlacementRequest(
            model_config,
            constraints=PlacementConstraints(request.node, request.devices),
            waited_s=planning.policy.patience_s,
            replica=request.replica,
        )
        plan, cluster = planning.plan(placement_request, force=True)
        return plan_view(
            placement_request,
            plan,
            cluster,
            planning.policy,
            planning.recent_failures(model_config.id),
        )

    def decisions(self, request: str) -> tuple[DecisionView, ...]:
        """Return the decisions about a request; see `DecisionLog.for_request`."""
        return self._controller.decision_log.for_request(request)

    def detail(self, name: str) -> ModelDetail:
        """Return a model's configured size next to what was measured.

        Raises:
            ModelNotFound: no model config and no instance has this name.
        """
        model = self._lookup.model(name)
        model_config = self._fleet.model_config(model)
        measurements = self._controller.measurements
        measured = (
            SizeMeasurement(
                node=m.node,
                kind=m.key.kind.value,
                devices=m.key.devices,
                build=m.build,
                loads=m.n,
                device_mb=m.device_mb,
                last_mb=m.last_mb or m.device_mb,
                load_s=m.load_s,
                at=m.at,
            )
            for m in measurements.for_model(model)
        )
        view = self._fleet.snapshot.model(model)
        return ModelDetail(
            model=model,
            harness=view.harness if view is not None else "",
            vram_mb=model_config.vram_mb if model_config is not None else None,
            min_devices=model_config.min_devices if model_config is not None else 1,
            priority=model_config.priority if model_config is not None else 0,
            rate=measurements.rate(model, self._clock.monotonic()),
            load_s=measurements.load_seconds(model),
            measured=tuple(measured),
            pins=self._pins_of(model),
        )

    def _pins_of(self, model: ModelId) -> tuple[PinView, ...]:
        return tuple(
            PinView(model=p.model, node=p.node, until=p.until)
            for p in self._directives.pins.all()
            if p.model == model
        )

    async def cordon(self, request: NodeRequest) -> NodeResult:
        """Stop placing instances on a node.

        Raises:
            NodeNotFound: there is no such node.
            Unavailable: this is in effect, but could not be saved and ends with the gateway.
        """
        return await self._set_cordoned(request.node, cordoned=True)

    async def uncordon(self, request: NodeRequest) -> NodeResult:
        """Resume placing instances on a node.

        Raises:
            NodeNotFound: there is no such node.
            Unavailable: the node is uncordoned, but that can't be saved; a restart of the gateway forgets it.
        """
        return await self._set_cordoned(request.node, cordoned=False)

    async def plan_defrag(self, request: DefragRequest) -> DefragView:
        """Return the moves that consolidate free memory; see `DefragRunner.plan`."""
        return self._defrag.plan(request)

    async def defrag(self, request: ApplyDefragRequest) -> DefragView:
        """Carry out the moves of a plan; see `DefragRunner.apply`."""
        return await self._defrag.apply(request)

    async def _set_cordoned(self, node: str, *, cordoned: bool) -> NodeResult:
        self._cordon(node, cordoned=cordoned)
        await self._directives.saved()
        return NodeResult(node=node, cordoned=cordoned)

    def _cordon(self, node: str, *, cordoned: bool) -> None:
        self._lookup.require_neuron(node)
        event(log, "cordoned" if cordoned else "uncordoned", node=node)
        self._directives.set_cordoned(node, cordoned=cordoned)

    async def drain(self, request: DrainNodeRequest) -> NodeResult:
        """Cordon a node, load its models elsewhere where memory is available, and unload them there.

        Raises:
            NodeNotFound: there is no such node.
            Unavailable: it is drained, but the cordon could not be saved and ends with the gateway.
        """
        self._cordon(request.node, cordoned=True)
        outcome = await self._node_drain.run(request.node, request.timeout_s)
        await self._directives.saved()
        return NodeResult.model_validate({"node": request.node, "cordoned": True} | outcome)

    async def plan_drain(self, request: NodeRequest) -> DrainPlan:
        """Return what draining a node would do. Changes nothing.

        Raises:
            NodeNotFound: there is no such node.
        """
        self._lookup.require_neuron(request.node)
        return self._node_drain.plan(request.node)

    async def close(self) -> None:
        """Cancel the loads that no caller waits for."""
        for task in self._load_tasks:
            task.cancel()
        await asyncio.gather(*self._load_tasks, return_exceptions=True)

    # -- internals ---------------------------------------------------------------------------

    def _ready(
        self, model_config: ModelConfig, instance: InstanceId, seconds: float
    ) -> ModelResult:
        views = [i for i in self._fleet.snapshot.instances() if i.id == instance]
        return ModelResult(
            model=model_config.id,
            state=ModelState.READY,
            nodes=tuple(v.node for v in views),
            seconds=round(seconds, 3),
            vram_mb=max((v.vram_used_mb for v in views), default=None),
        )

    def _load_ended(self, model: str, task: asyncio.Task[InstanceId]) -> None:
        self._load_tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), CortexError):
            event(log, "load_failed", logging.WARNING, model=model, reason=error.message)
