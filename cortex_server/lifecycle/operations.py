"""What an operator can do with models: each verb checks, hands over to the conductor, and tells what became of it."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from shlex import quote

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, CortexError, ModelNotFound, NodeNotFound, NotFound
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, ModelState
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_common.schema.model_detail import ModelDetail, SizeMeasurement
from cortex_common.schema.operations import (
    DrainNodeRequest,
    EvictModelRequest,
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
from cortex_server.lifecycle.node_drain import NodeDrain
from cortex_server.lifecycle.pins import Pin
from cortex_server.lifecycle.ports import PlacementStorage
from cortex_server.lifecycle.views import eviction, plan_view
from cortex_server.placement.capacity import TAKING_MEMORY
from cortex_server.placement.fit import PlacementConstraints
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.state import PlacementRequest

log = logging.getLogger("cortex.operator")


class Operations:
    """See the module.

    Args:
        fleet: the live state.
        conductor: who decides.
        restarts: who restarts engines of somebody else.
        store: what outlasts this gateway.
        clock: for how long things took.
    """

    def __init__(
        self,
        fleet: Fleet,
        controller: Controller,
        restarts: EngineRestarts,
        store: PlacementStorage,
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._store = store
        self._controller = controller
        self._clock = clock
        self._node_drain = NodeDrain(fleet, controller)
        self._defrag = DefragRunner(
            fleet, controller, restarts, clock, self.model_config, self.check_node
        )
        self._pursued: set[asyncio.Task[InstanceId]] = set()

    def shown(self) -> FleetSnapshot:
        """See `Controller.shown`."""
        return self._controller.shown()

    async def load(self, request: LoadModelRequest) -> ModelResult:
        """Have a model loaded.

        Raises:
            ModelNotFound: no profile has this name.
            CortexError: as `Controller.obtain`; without `wait` only what is known at once.
        """
        model_config = self.model_config(request.model)
        if request.node is not None:
            self.check_node(request.node)
        began = self._clock.monotonic()
        key = LoadKey(
            model_config.id,
            PlacementConstraints(request.node, request.devices),
            replica=request.replica,
        )
        if request.ttl_s is not None:
            self._controller.upkeep.ttls[model_config.id] = request.ttl_s
        if request.pin:
            self._controller.pin(Pin(ModelId(model_config.id), request.node, None))
        event(log, "load_asked", model=model_config.id, node=request.node)
        task = asyncio.create_task(
            self._controller.want(model_config, key, timeout_s=request.timeout_s, force=True)
        )
        self._pursued.add(task)
        task.add_done_callback(partial(self._pursuit_ended, model_config.id))
        if request.wait:
            instance = await task
            return self._ready(model_config, instance, self._clock.monotonic() - began)
        # Two rounds: the first hears of the wish, after the second it is answered or under way.
        await self._controller.barrier()
        await asyncio.sleep(0)
        if task.done():
            return self._ready(model_config, task.result(), self._clock.monotonic() - began)
        progress = self._controller.progress(model_config.id)
        nodes = (progress.node,) if progress is not None and progress.node else ()
        return ModelResult(model=model_config.id, state=ModelState.LOADING, nodes=nodes)

    async def unload(self, request: UnloadModelRequest) -> ModelResult:
        """Drain and end all instances of a model.

        Raises:
            ModelNotFound: no profile and no instance has this name.
            StillBusy: requests went on for longer than `drain_timeout_s`; nothing was ended.
        """
        model = self.model(request.model)
        began = self._clock.monotonic()
        views = self.instances(model)
        event(log, "unload_asked", model=model, instances=len(views))
        await self._controller.unload(model, views, request.drain_timeout_s, whole=True)
        return ModelResult(
            model=model,
            state=ModelState.UNLOADED,
            nodes=tuple(dict.fromkeys(v.node for v in views)),
            seconds=round(self._clock.monotonic() - began, 3),
        )

    async def evict(self, request: EvictModelRequest) -> ModelResult:
        """Drain and end one instance; the model may be loaded again when somebody asks for it.

        Raises:
            NotFound: there is no such instance, or node.
            Conflict: it is pinned, or busy for longer than `drain_timeout_s`.
        """
        began = self._clock.monotonic()
        view = self._victim(request)
        model = view.model
        event(log, "evict_asked", model=model, node=view.node, instance=view.id)
        await self._controller.unload(model, (view,), request.drain_timeout_s, whole=False)
        left = [i for i in self._fleet.snapshot.instances() if i.model == model and i.id != view.id]
        return ModelResult(
            model=model,
            state=ModelState.READY
            if any(i.state is InstanceState.READY for i in left)
            else ModelState.UNLOADED,
            nodes=(view.node,),
            seconds=round(self._clock.monotonic() - began, 3),
            vram_mb=view.vram_used_mb,
        )

    async def plan_evict(self, request: EvictModelRequest) -> PlannedEviction:
        """Which instance would go, and whom that disturbs. Changes nothing.

        Raises:
            NotFound: there is no such instance, or node.
            Conflict: it is pinned.
        """
        return eviction(self._victim(request), self._clock.unix())

    def _victim(self, request: EvictModelRequest) -> InstanceView:
        model = self.model(request.model)
        if request.node is not None:
            self.check_node(request.node)
        views = [
            i
            for i in self.shown().instances()
            if i.model == model
            and i.state in TAKING_MEMORY
            and request.node in {None, i.node}
            and request.instance in {None, i.id}
        ]
        if not views:
            where = f" on {request.node}" if request.node else ""
            raise NotFound(f"model {model!r} has no instance{where}", hints=("cortex ps",))
        view = min(views, key=lambda i: (i.pinned, i.in_flight > 0, i.last_used))
        if view.pinned:
            raise Conflict(f"{view.id} is pinned", hints=(f"cortex models unpin {quote(model)}",))
        return view

    async def pin(self, request: PinModelRequest) -> PinView:
        """Protect a model from eviction, for a time or for good.

        Raises:
            ModelNotFound: there is no such model.
            NodeNotFound: there is no such node.
            Unavailable: it is protected, but a restart of the gateway will forget that.
        """
        model = self.model(request.model)
        if request.node is not None:
            self.check_node(request.node)
        until = None if request.for_s is None else self._clock.unix() + request.for_s
        ends = None if until is None else datetime.fromtimestamp(until, UTC)
        event(
            log,
            "pinned",
            model=model,
            node=request.node,
            until=ends and ends.isoformat("T", "seconds"),
        )
        self._controller.pin(Pin(model, request.node, until))
        await self._store.saved()
        return PinView(model=model, node=request.node, until=until)

    async def unpin(self, request: UnpinModelRequest) -> tuple[PinView, ...]:
        """End pins of a model; answers those that it still has.

        Raises:
            NotFound: it has no such pin.
            Unavailable: the pin is gone, but a restart of the gateway will bring it back.
        """
        model = self.model(request.model)
        if not self._controller.unpin(model, request.node):
            raise NotFound(
                f"model {model!r} has no such pin",
                hints=("pinned_on in models.toml pins are changed there",),
            )
        event(log, "unpinned", model=model, node=request.node)
        await self._store.saved()
        return self._pins_of(model)

    async def plan_load(self, request: PlanLoadRequest) -> PlanView:
        """What would be done to load a model, at worst after some waiting. Changes nothing.

        Raises:
            ModelNotFound: no profile has this name.
        """
        model_config, advice = self.model_config(request.model), self._controller.advice
        if request.node is not None:
            self.check_node(request.node)
        wanted = PlacementRequest(
            model_config,
            where=PlacementConstraints(request.node, request.devices),
            waited_s=advice.policy.patience_s,
            replica=request.replica,
        )
        found, cluster = advice.plan(wanted, force=True)
        return plan_view(wanted, found, cluster, advice.policy, advice.lately(model_config.id))

    def decisions(self, request: str) -> tuple[DecisionView, ...]:
        """See `Decisions.of`."""
        return self._controller.decisions.of(request)

    def detail(self, name: str) -> ModelDetail:
        """A model's estimate beside what was measured.

        Raises:
            ModelNotFound: no profile and no instance has this name.
        """
        model = self.model(name)
        model_config = self._fleet.model_config(model)
        known = self._controller.measurements
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
            for m in known.measurements(model)
        )
        view = self._fleet.snapshot.model(model)
        return ModelDetail(
            model=model,
            harness=view.harness if view is not None else "",
            vram_mb=model_config.vram_mb if model_config is not None else None,
            min_devices=model_config.min_devices if model_config is not None else 1,
            priority=model_config.priority if model_config is not None else 0,
            rate=known.rate(model, self._clock.monotonic()),
            load_s=known.load_seconds(model),
            measured=tuple(measured),
            pins=self._pins_of(model),
        )

    def _pins_of(self, model: ModelId) -> tuple[PinView, ...]:
        return tuple(
            PinView(model=p.model, node=p.node, until=p.until)
            for p in self._controller.pins.all()
            if p.model == model
        )

    async def cordon(self, request: NodeRequest) -> NodeResult:
        """Stop placing instances on a node.

        Raises:
            NodeNotFound: there is no such node.
            Unavailable: the node is cordoned, but that can't be saved; a restart of the gateway forgets it.
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
        await self._store.saved()
        return NodeResult(node=node, cordoned=cordoned)

    def _cordon(self, node: str, *, cordoned: bool) -> None:
        self.check_node(node)
        event(log, "cordoned" if cordoned else "uncordoned", node=node)
        self._fleet.set_cordoned(node, cordoned)
        self._store.replace_cordons(n.name for n in self._fleet.bare.nodes if n.cordoned)

    async def drain(self, request: DrainNodeRequest) -> NodeResult:
        """Cordon a node, load its models elsewhere where there is room, and unload them here.

        Raises:
            NodeNotFound: there is no such node.
            Unavailable: it is drained, but a restart of the gateway will forget that it is cordoned.
        """
        self._cordon(request.node, cordoned=True)
        became = await self._node_drain.empty(request.node, request.timeout_s)
        await self._store.saved()
        return NodeResult.model_validate({"node": request.node, "cordoned": True} | became)

    async def plan_drain(self, request: NodeRequest) -> DrainPlan:
        """What draining a node would do. Changes nothing.

        Raises:
            NodeNotFound: there is no such node.
        """
        self.check_node(request.node)
        return self._node_drain.plan(request.node)

    async def close(self) -> None:
        """Stop pursuing loads that nobody waits for."""
        for task in self._pursued:
            task.cancel()
        await asyncio.gather(*self._pursued, return_exceptions=True)

    # -- names -------------------------------------------------------------------------------

    def model(self, name: str) -> ModelId:
        """The model that a name or alias means.

        Raises:
            ModelNotFound: with the nearest names.
        """
        if (found := self._fleet.known(name)) is not None:
            return found
        if any(i.model == name for i in self._fleet.snapshot.instances()):
            return ModelId(name)
        raise self._fleet.unknown(name)

    def model_config(self, name: str) -> ModelConfig:
        """The profile that a name or alias means.

        Raises:
            ModelNotFound: with the nearest names, or who serves it without one.
        """
        model = self.model(name)
        if (found := self._fleet.model_config(model)) is None:
            there = {i.node: None for i in self._fleet.snapshot.instances() if i.model == model}
            raise ModelNotFound(
                f"no profile says how {name!r} is loaded; it is only there as {', '.join(there)} has it",
                hints=("describe it in models.toml",),
            )
        return found

    def check_node(self, name: str) -> None:
        """Refuse a node that is not in the configuration, or has no neuron.

        Raises:
            NodeNotFound: with the name that may have been meant.
            Conflict: it is an upstream.
        """
        if name not in self._fleet.entries:
            raise NodeNotFound.for_name(name, self._fleet.entries)
        if self._fleet.is_upstream(name):
            raise Conflict(f"{name} is an upstream: cortex loads and unloads nothing there")

    def instances(self, model: ModelId) -> tuple[InstanceView, ...]:
        """The instances of a model that a node holds, failed ones included.

        Raises:
            NotFound: it has none.
        """
        kept = TAKING_MEMORY | {InstanceState.FAILED}
        found = tuple(
            i for i in self._fleet.snapshot.instances() if i.model == model and i.state in kept
        )
        if not found and not self._controller.waiting(model):
            raise NotFound(f"model {model!r} is not loaded", hints=("cortex ps",))
        return found

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

    def _pursuit_ended(self, model: str, task: asyncio.Task[InstanceId]) -> None:
        self._pursued.discard(task)
        if not task.cancelled() and isinstance(failed := task.exception(), CortexError):
            event(log, "load_failed", logging.WARNING, model=model, reason=failed.message)
