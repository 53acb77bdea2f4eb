"""The one task that owns lifecycle state: events come in through an inbox, decisions go out to the nodes.

Nobody else plans, loads or evicts. The fast path of a request does not come here: only a request whose model has no
ready instance does, and waits in `Controller.obtain`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewayConfig
from cortex_common.errors import Conflict, CortexError, ModelLoading, Unavailable
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId, ModelId, RestartResponse
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.decision_log import DecisionLog
from cortex_server.lifecycle.executor import Executor
from cortex_server.lifecycle.measurements import Measurements
from cortex_server.lifecycle.pins import Pin, PinStore
from cortex_server.lifecycle.placement_view import PlacementView, PlanService
from cortex_server.lifecycle.ports import PlacementStorage
from cortex_server.lifecycle.reconciler import Reconciler
from cortex_server.lifecycle.views import WaitProgress, progress_of, with_pins, with_reasons
from cortex_server.placement.desired_state import DesiredState
from cortex_server.placement.engine_restarts import Restart
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.policy import new_instance_id, policy_of
from cortex_server.placement.scheduler import Scheduler

Later = Callable[[float], None]
"""An event for the conductor's task, called there with the monotonic time."""


class LoadOutcomes:
    """The carrier's `Reports`.

    Args:
        scheduler: whose events they are.
        outlook: hears which instances are gone.
        knowledge: hears what a node needs for a load.
        post: has an event happen on the conductor's task.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        placement_view: PlacementView,
        measurements: Measurements,
        post: Callable[[Later], None],
    ) -> None:
        self._scheduler = scheduler
        self._placement_view = placement_view
        self._measurements = measurements
        self._post = post

    def room_made(self, instance: InstanceId) -> None:
        """See `Reports.room_made`."""
        self._post(lambda now: self._scheduler.room_made(instance, now))

    def room_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        """See `Reports.room_failed`."""
        self._post(lambda now: self._scheduler.room_failed(instance, stuck, now))

    def left(self, instance: InstanceId) -> None:
        """See `Reports.left`."""
        self._post(lambda _now: self._placement_view.left(instance))

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        """See `Reports.admitted`."""
        self._post(lambda now: self._scheduler.admitted(instance, actual, now))

    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        """See `Reports.refused`."""
        if needed_mb is not None:
            shape = order.plan.shape
            self._measurements.refused(order.model_config, shape.kind, shape.devices, needed_mb)
        self._post(lambda now: self._scheduler.refused(order.instance, now))

    def failed(self, instance: InstanceId, reason: str) -> None:
        """See `Reports.failed`."""
        self._post(lambda now: self._scheduler.failed(instance, reason, now))


log = logging.getLogger("cortex.lifecycle")

UPKEEP_S = 1.0
"""How often what depends on time alone is looked at."""

PURSUED_FOR_S = 3600.0
"""How long room is waited for on behalf of nobody."""


class Controller:
    """See the module.

    Args:
        fleet: the live state.
        nodes: client of each node's neuron, by node name.
        catalogue: the profiles; `use_catalogue` replaces them.
        config: of the gateway.
        clock: for deadlines and timestamps.
        store: what outlasts this gateway.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        nodes: Mapping[str, NeuronClient],
        catalogue: Catalogue,
        config: GatewayConfig,
        clock: Clock,
        store: PlacementStorage | None = None,
    ) -> None:
        self._store = store
        self.measurements = Measurements(store.measurements() if store else ())
        self.pins = PinStore(store.pins() if store else ())
        self.upkeep = DesiredState(config.eviction.idle_ttl, config.placement.scale_out_after)
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._model_configs = {p.id: p for p in catalogue.models}
        self._scheduler = Scheduler(self, policy_of(config), new_instance_id)
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[InstanceId]] = {}
        self._inbox: deque[Later] = deque()
        self._bell = asyncio.Event()
        self._placement_view = PlacementView(self.measurements, self.pins, clock)
        self._placement_view.use_model_configs(self._model_configs)
        self.advice = PlanService(self._scheduler, self._placement_view, fleet, clock)
        outcomes = LoadOutcomes(
            self._scheduler, self._placement_view, self.measurements, self._post
        )
        self._executor = Executor(fleet, nodes, outcomes)
        self.decisions = DecisionLog()
        self._reconciler = Reconciler(
            self.upkeep,
            lambda model_config, key: self.want(model_config, key, timeout_s=PURSUED_FOR_S),
            self.unload,
            self._placement_view.is_leaving,
            clock,
        )
        self._considered: list[asyncio.Future[None]] = []
        self._ended = False

    # -- what the data plane calls -----------------------------------------------------------

    async def acquire(
        self, model_config: ModelConfig, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """Wait until an instance of the model is ready, having it loaded where needed.

        Cancelling the wait is right at any time: a load that nobody else wants is given up if its node was not
        asked yet.

        Args:
            model_config: of the model.
            request_id: by which `decisions` remembers what it waited for.
            timeout_s: how long to wait.

        Raises:
            DoesNotFit: it fits nowhere; at once, with the reason for each device.
            NoHealthyNode: no node that could serve it answers, or those that could load it are cordoned.
            LoadFailed: the engine could not load it; with its reason.
            ModelLoading: `timeout_s` went by; with state, node and ETA.
            Busy: too many wait for it already.
        """
        event(log, "cold_start", logging.DEBUG, model=model_config.id, request=request_id)
        self.upkeep.ended.discard(model_config.id)
        began = self._clock.monotonic()
        try:
            instance = await self.want(model_config, LoadKey(model_config.id), timeout_s=timeout_s)
        except CortexError as failed:
            self._waited(request_id, model_config, began, None, failed.message)
            raise
        self._waited(
            request_id, model_config, began, instance, "another request had it loaded already"
        )
        return instance

    def _waited(
        self,
        request: str,
        model_config: ModelConfig,
        began: float,
        instance: InstanceId | None,
        otherwise: str,
    ) -> None:
        self.decisions.waited(
            request,
            at=self._clock.unix(),
            model=model_config.id,
            seconds=self._clock.monotonic() - began,
            instance=instance,
            otherwise=otherwise,
        )

    async def want(
        self, model_config: ModelConfig, key: LoadKey, *, timeout_s: float, force: bool = False
    ) -> InstanceId:
        """`acquire` for any goal, such as an instance on a certain node; see `LoadRequest.insists`."""
        if self._ended:
            raise Unavailable("the gateway is stopping", retry_after=5.0)
        if force:
            self.upkeep.ended.discard(model_config.id)
        now = self._clock.monotonic()
        ask = LoadRequest(next(self._ids), model_config, key, now, now + timeout_s, force)
        answer: asyncio.Future[InstanceId] = asyncio.get_running_loop().create_future()
        self._answers[ask.id] = answer
        self._post(lambda at: self._scheduler.ask(ask, at))
        try:
            return await answer
        finally:
            if self._answers.pop(ask.id, None) is not None:
                self._post(lambda _at: self._scheduler.cancel(ask.id))

    def waiting(self, model: ModelId) -> int:
        """How many requests wait for a model."""
        return self._scheduler.waiting.count(model)

    async def barrier(self) -> None:
        """Return once everything that was asked before has been considered."""
        considered = asyncio.get_running_loop().create_future()
        self._post(lambda _now: self._considered.append(considered))
        await considered

    async def unload(
        self,
        model: str,
        instances: Iterable[InstanceView],
        drain_s: float,
        *,
        whole: bool,
        why: str = "operator",
    ) -> None:
        """Drain and end instances of a model.

        Args:
            model: its id.
            instances: which of them.
            drain_s: how long their requests may go on. An operator's unload then cuts those of other gateways.
            whole: the model is not wanted any more, until somebody asks for it: whoever waits for it is told.
            why: the reason in one word, for log and metrics; see `Tally.unloads`.

        Raises:
            StillBusy: requests went on for longer; nothing was ended.
            Conflict: all of them are at upstreams, where nothing is ended.
        """
        named = tuple(instances)
        views = tuple(v for v in named if not self._fleet.is_upstream(v.node))
        if named and not views:
            raise Conflict(f"{model!r} is served by {named[0].node}, where cortex ends nothing")
        if whole:
            self.upkeep.ended.add(model)
            self._post(lambda _now: self._scheduler.drop(model))
        try:
            with self._placement_view.leaving(v.id for v in views):
                await self._executor.remove(views, drain_s, why, cut=why == "operator")
        except CortexError:
            if whole:
                self.upkeep.ended.discard(model)
            raise
        else:
            if whole:  # another that failed meanwhile may have taken it out
                self.upkeep.ended.add(model)
        finally:
            self._bell.set()

    async def restart(self, restart: Restart, drain_s: float) -> RestartResponse:
        """Drain what is in an engine of somebody else, and have it restarted; see `Executor.restart`.

        Who asks for a model of it meanwhile waits until that is back, and has none loaded elsewhere.
        """
        try:
            with self._placement_view.returning(restart.instances):
                return await self._executor.restart(restart, drain_s)
        finally:
            self._bell.set()

    def progress(self, model: str) -> WaitProgress | None:
        """How far a model is that somebody waits for or that is being loaded; None when neither."""
        return progress_of(
            model,
            self._scheduler,
            self._fleet.bare,
            self.measurements.load_seconds(model),
            self._clock.monotonic(),
        )

    # -- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide until cancelled; then everybody who still waits is told."""
        self._fleet.on_change(self._bell.set)
        self._fleet.count_waiting(self.waiting)
        upkeep_at = self._clock.monotonic()
        self._reconciler.begin(self._model_configs)
        try:
            while True:
                await self._next_event(upkeep_at)
                now = self._clock.monotonic()
                while self._inbox:
                    self._inbox.popleft()(now)
                if now >= upkeep_at:
                    upkeep_at = now + UPKEEP_S
                    self._keep_up(now)
                self._step(now)
                self._say_considered()
        finally:
            self._ended = True
            self._fleet.remove_listener(self._bell.set)
            while self._inbox:
                self._inbox.popleft()(self._clock.monotonic())
            self._scheduler.close(Unavailable("the gateway is stopping", retry_after=5.0))
            self._say_considered()
            await self._executor.close()
            await self._reconciler.close()

    def _say_considered(self) -> None:
        while self._considered:
            if not (considered := self._considered.pop()).done():
                considered.set_result(None)

    async def _next_event(self, upkeep_at: float) -> None:
        """Return when something happened, or something is due."""
        wake = self._scheduler.next_wake()
        until = upkeep_at if wake is None else min(wake, upkeep_at)
        seconds = max(0.0, until - self._clock.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            pass
        self._bell.clear()

    def _step(self, now: float) -> None:
        if not self._scheduler.waiting and not self._scheduler.loads:
            return
        snapshot = self._fleet.bare
        self._scheduler.step(lambda overlay: self._placement_view.cluster(snapshot, overlay), now)

    def _keep_up(self, now: float) -> None:
        """What is due with time alone."""
        snapshot = self._fleet.snapshot
        learned = self.measurements.observe(snapshot, self._model_configs, now)
        if self._store is not None and learned:
            self._store.add_measurements(learned)
        if self.pins.expire(self._clock.unix()):
            self._pins_changed()
        visible = frozenset(i.id for i in snapshot.instances())
        self._placement_view.refresh(visible)
        self.decisions.forget_loads(visible.union(u.order.instance for u in self._scheduler.loads))
        self._reconciler.do(with_pins(snapshot, self.pins), self._model_configs, now)

    def _pins_changed(self) -> None:
        if self._store is not None:
            self._store.replace_pins(self.pins.all())
        self._fleet.touch()

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the profiles; what is loaded stays as it is until it is loaded anew."""
        before, self._model_configs = self._model_configs, {p.id: p for p in catalogue.models}
        self._placement_view.use_model_configs(self._model_configs)
        for changed in (p for p in catalogue.models if before.get(p.id) != p):
            self.measurements.ask_anew(changed.id)
            self._post(partial(self._scheduler.model_config_changed, changed))
        self._bell.set()

    def use_config(self, config: GatewayConfig) -> None:
        """Decide by other settings from now on."""
        self._config = config
        self._scheduler.policy = policy_of(config)
        self.upkeep.idle_ttl_s = config.eviction.idle_ttl
        self.upkeep.scale_out_after_s = config.placement.scale_out_after
        self._bell.set()

    def shown(self) -> FleetSnapshot:
        """The fleet as people see it: with operators' pins, why instances are where they are, and what is to go."""
        snapshot = with_pins(self._fleet.snapshot, self.pins)
        failures, now = self._scheduler.failures.failures, self._clock.monotonic()
        why = self.decisions.why
        return with_reasons(snapshot, why, self._model_configs, self.upkeep, failures, now)

    @property
    def drain_timeout_s(self) -> float:
        """How long an instance that has to go may go on with its requests."""
        return self._config.eviction.drain_timeout

    def pin(self, pin: Pin) -> None:
        """Protect a model from eviction."""
        self.pins.add(pin)
        self._pins_changed()

    def unpin(self, model: ModelId, node: str | None) -> bool:
        """End that; whether there was a pin."""
        found = self.pins.remove(model, node)
        self._pins_changed()
        return found

    def _post(self, later: Later) -> None:
        self._inbox.append(later)
        self._bell.set()

    # -- effects of the scheduler ------------------------------------------------------------

    def grant(self, waiter: int, instance: InstanceId) -> None:
        """See `Effects.grant`."""
        answer = self._answers.pop(waiter, None)
        if answer is not None and not answer.done():
            answer.set_result(instance)

    def refuse(self, waiter: int, error: CortexError) -> None:
        """See `Effects.refuse`."""
        answer = self._answers.pop(waiter, None)
        if answer is not None and not answer.done():
            if isinstance(error, ModelLoading):
                self._tell_eta(error)
            answer.set_exception(error)

    def _tell_eta(self, error: ModelLoading) -> None:
        """Say in a refusal for time when the model is expected, and to come back then."""
        told = self.progress(str(error.details["model"]))
        if told is not None and told.eta_s is not None:
            error.details["loading"]["eta_s"] = round(told.eta_s, 1)
            error.retry_after = min(60.0, max(1.0, told.eta_s))

    def make_room(self, order: LoadOrder) -> None:
        """See `Effects.make_room`."""
        self._executor.make_room(order, self.drain_timeout_s)

    def start(self, order: LoadOrder) -> None:
        """See `Effects.start`."""
        self.decisions.begun(order)
        self._executor.start(order)

    def abandon(self, order: LoadOrder) -> None:
        """See `Effects.abandon`."""
        self._executor.abandon(order)

    def cancel_load(self, order: LoadOrder) -> None:
        """See `Effects.take_back`."""
        self._executor.cancel_load(order)
