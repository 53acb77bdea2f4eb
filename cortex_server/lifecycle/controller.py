"""The task that owns the lifecycle of instances: events arrive through an inbox, decisions go out to the nodes.

Nothing else plans, loads or evicts. A request reaches the controller only if its model has no ready instance; it then
waits in `Controller.acquire`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial

from typing_extensions import override

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
from cortex_server.lifecycle.directives import OperatorDirectives
from cortex_server.lifecycle.executor import Executor
from cortex_server.lifecycle.load_outcomes import Event, LoadOutcomes
from cortex_server.lifecycle.measurements import Measurements
from cortex_server.lifecycle.placement_view import PlacementView, PlanService
from cortex_server.lifecycle.ports import PlacementStorage
from cortex_server.lifecycle.reconciler import Reconciler
from cortex_server.lifecycle.views import WaitProgress, wait_progress, with_pins, with_reasons
from cortex_server.placement.desired_state import DesiredState
from cortex_server.placement.engine_restarts import Restart
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.pending_loads import Effects, LoadOrder
from cortex_server.placement.policy import new_instance_id, policy_from_config
from cortex_server.placement.scheduler import Scheduler

log = logging.getLogger("cortex.lifecycle")

RECONCILE_INTERVAL_S = 1.0
"""Interval of the checks for what time alone makes due."""

BACKGROUND_LOAD_TIMEOUT_S = 3600.0
"""How long a load that no request waits for may take, waiting for memory included."""


class Controller(Effects):
    """Owns loads and evictions; see the module docstring.

    Args:
        fleet: live state of the nodes.
        nodes: client of each node's neuron, by node name.
        catalogue: the model configs; `use_catalogue` replaces them.
        config: the gateway's configuration; `use_config` replaces it.
        clock: for deadlines and timestamps.
        store: persists measurements and directives.

    Attributes:
        measurements: what is known about models from their loads.
        directives: pins, cordons and times to live set by operators.
        desired_state: what time alone makes due.
        planning: plans without carrying them out.
        decision_log: why instances are where they are, and what requests waited for.
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
        self.desired_state = DesiredState(
            config.eviction.idle_ttl, config.placement.scale_out_after
        )
        self._fleet = fleet
        self._clock = clock
        self._config = config
        self._model_configs = {p.id: p for p in catalogue.models}
        self._scheduler = Scheduler(self, policy_from_config(config), new_instance_id)
        self._ids = itertools.count(1)
        self._futures: dict[int, asyncio.Future[InstanceId]] = {}
        self._inbox: deque[Event] = deque()
        self._wakeup = asyncio.Event()
        self.directives = OperatorDirectives(fleet, nodes, clock, store, self._directives_changed)
        self._placement_view = PlacementView(self.measurements, self.directives.pins, clock)
        self._placement_view.use_model_configs(self._model_configs)
        self.planning = PlanService(self._scheduler, self._placement_view, fleet, clock)
        outcomes = LoadOutcomes(
            self._scheduler, self._placement_view, self.measurements, self._post
        )
        self._executor = Executor(fleet, nodes, outcomes)
        self.decision_log = DecisionLog()
        self._reconciler = Reconciler(
            self.desired_state,
            lambda model_config, key: self.ensure_loaded(
                model_config, key, timeout_s=BACKGROUND_LOAD_TIMEOUT_S
            ),
            self.unload,
            self._placement_view.is_unloading,
            clock,
        )
        self._barriers: list[asyncio.Future[None]] = []
        self._stopped = False
        self.directives.refresh()

    # -- requests ----------------------------------------------------------------------------

    async def acquire(
        self, model_config: ModelConfig, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """Wait until an instance of the model is ready; load one if needed.

        Can be cancelled at any time: a load that no other request waits for is dropped if it has not been sent to its
        node.

        Args:
            model_config: the model's config.
            request_id: the id under which `decision_log` records the wait.
            timeout_s: how long to wait.

        Raises:
            DoesNotFit: no device can hold it; raised immediately, with the reason for each device.
            NoHealthyNode: no node that could serve it is up, or those that could load it are cordoned.
            LoadFailed: the engine could not load it.
            ModelLoading: `timeout_s` has passed; with state, node and ETA.
            Busy: too many requests wait for it already.
        """
        event(log, "cold_start", logging.DEBUG, model=model_config.id, request=request_id)
        self.desired_state.unloaded_models.discard(model_config.id)
        started = self._clock.monotonic()
        try:
            instance = await self.ensure_loaded(
                model_config, LoadKey(model_config.id), timeout_s=timeout_s
            )
        except CortexError as error:
            self._log_wait(request_id, model_config, started, None, error.message)
            raise
        self._log_wait(
            request_id, model_config, started, instance, "already loaded for another request"
        )
        return instance

    def _log_wait(
        self,
        request: str,
        model_config: ModelConfig,
        started: float,
        instance: InstanceId | None,
        otherwise: str,
    ) -> None:
        self.decision_log.record_wait(
            request,
            at=self._clock.unix(),
            model=model_config.id,
            seconds=self._clock.monotonic() - started,
            instance=instance,
            otherwise=otherwise,
        )

    async def ensure_loaded(
        self, model_config: ModelConfig, key: LoadKey, *, timeout_s: float, force: bool = False
    ) -> InstanceId:
        """Wait until an instance with this key is ready, like `acquire`; for `force` see `LoadRequest.force`."""
        if self._stopped:
            raise Unavailable("the gateway is stopping", retry_after=5.0)
        if force:
            self.desired_state.unloaded_models.discard(model_config.id)
        now = self._clock.monotonic()
        request = LoadRequest(next(self._ids), model_config, key, now, now + timeout_s, force)
        future: asyncio.Future[InstanceId] = asyncio.get_running_loop().create_future()
        self._futures[request.id] = future
        self._post(lambda at: self._scheduler.enqueue(request, at))
        try:
            return await future
        finally:
            if self._futures.pop(request.id, None) is not None:
                self._post(lambda _at: self._scheduler.cancel(request.id))

    def waiting_requests(self, model: ModelId) -> int:
        """Return the number of requests that wait for a model."""
        return self._scheduler.queues.count(model)

    async def barrier(self) -> None:
        """Return once all earlier events have been handled."""
        barrier = asyncio.get_running_loop().create_future()
        self._post(lambda _now: self._barriers.append(barrier))
        await barrier

    async def unload(
        self,
        model: str,
        instances: Iterable[InstanceView],
        drain_s: float,
        *,
        cancel_requests: bool,
        reason: str = "operator",
    ) -> None:
        """Drain and unload instances of a model.

        Args:
            model: the model's id.
            instances: the instances.
            drain_s: how long their requests may continue. An operator's unload then cuts those of other gateways.
            cancel_requests: the model is not wanted until it is requested again; requests that wait for it fail.
            reason: the reason in one word, for log and metrics; see `Counters.unloads`.

        Raises:
            InstanceBusy: requests continued for longer; nothing was unloaded.
            Conflict: all instances are on upstreams, where nothing can be unloaded.
        """
        requested = tuple(instances)
        views = tuple(v for v in requested if not self._fleet.is_upstream(v.node))
        if requested and not views:
            raise Conflict(
                f"{model!r} is served by upstream {requested[0].node}, where cortex cannot unload it"
            )
        if cancel_requests:
            self.desired_state.unloaded_models.add(model)
            self._post(lambda _now: self._scheduler.cancel_model(model))
        try:
            with self._placement_view.unloading(v.id for v in views):
                await self._executor.remove(views, drain_s, reason, force=reason == "operator")
        except CortexError:
            if cancel_requests:
                self.desired_state.unloaded_models.discard(model)
            raise
        else:
            if cancel_requests:  # a concurrent unload that failed may have removed it
                self.desired_state.unloaded_models.add(model)
        finally:
            self._wakeup.set()

    async def restart(self, restart: Restart, drain_s: float) -> RestartResponse:
        """Drain and restart an attached engine; see `Executor.restart`.

        Requests for its models wait until they are back, and are not loaded elsewhere.
        """
        try:
            with self._placement_view.restarting(restart.instances):
                return await self._executor.restart(restart, drain_s)
        finally:
            self._wakeup.set()

    async def forget_size(self, model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Forget the measured sizes of a model; return the nodes that knew some, and those that could not be asked."""
        self.measurements.forget(model)
        if self._store is not None:
            self._store.remove_measurements(model)
        return await self._executor.forget_size(model)

    def progress(self, model: str) -> WaitProgress | None:
        """Return the progress of a model that is queued or loading; None when it is neither."""
        return wait_progress(
            model,
            self._scheduler,
            self._fleet.node_snapshot,
            self.measurements.load_seconds(model),
            self._clock.monotonic(),
        )

    # -- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle events until cancelled. What is under way continues when it is called again."""
        self._fleet.on_change(self._wakeup.set)
        self._fleet.use_waiting_counter(self.waiting_requests)
        upkeep_at = self._clock.monotonic()
        try:
            while True:
                await self._next_event(upkeep_at)
                now = self._clock.monotonic()
                self.directives.observe()
                while self._inbox:
                    self._inbox.popleft()(now)
                if now >= upkeep_at:
                    upkeep_at = now + RECONCILE_INTERVAL_S
                    self._reconcile(now)
                self._step(now)
                self._release_barriers()
        finally:
            self._fleet.remove_listener(self._wakeup.set)

    async def close(self) -> None:
        """Refuse every waiting request and end what is under way; call it once `run` has ended."""
        self._stopped = True
        while self._inbox:
            self._inbox.popleft()(self._clock.monotonic())
        self._scheduler.close(Unavailable("the gateway is stopping", retry_after=5.0))
        self._release_barriers()
        await self._executor.close()
        await self._reconciler.close()

    def _release_barriers(self) -> None:
        while self._barriers:
            if not (barrier := self._barriers.pop()).done():
                barrier.set_result(None)

    async def _next_event(self, upkeep_at: float) -> None:
        """Return when there is an event or something is due."""
        wake = self._scheduler.next_wake()
        until = upkeep_at if wake is None else min(wake, upkeep_at)
        seconds = max(0.0, until - self._clock.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        except TimeoutError:
            pass
        self._wakeup.clear()

    def _step(self, now: float) -> None:
        if not self._scheduler.queues and not self._scheduler.loads:
            return
        snapshot = self._fleet.node_snapshot
        self._scheduler.step(lambda overlay: self._placement_view.cluster(snapshot, overlay), now)

    def _reconcile(self, now: float) -> None:
        """Do what time alone makes due."""
        snapshot = self._fleet.snapshot
        measured = self.measurements.observe(snapshot, self._model_configs, now)
        if self._store is not None and measured:
            self._store.add_measurements(measured)
        self.directives.refresh()
        reported = frozenset(i.id for i in snapshot.instances())
        self._placement_view.refresh(reported)
        self.decision_log.retain_loads(
            reported.union(u.order.instance for u in self._scheduler.loads)
        )
        self._reconciler.reconcile(
            with_pins(snapshot, self.directives.pins), self._model_configs, now
        )

    def _directives_changed(self) -> None:
        self.desired_state.ttls = self.directives.ttls
        self._fleet.notify()

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the model configs; loaded instances stay as they are until they are loaded again."""
        previous, self._model_configs = self._model_configs, {p.id: p for p in catalogue.models}
        self._placement_view.use_model_configs(self._model_configs)
        for changed in (p for p in catalogue.models if previous.get(p.id) != p):
            self.measurements.forget_node_estimates(changed.id)
            self._post(partial(self._scheduler.model_config_changed, changed))
        self._wakeup.set()

    def use_config(self, config: GatewayConfig) -> None:
        """Replace the configuration."""
        self._config = config
        self._scheduler.policy = policy_from_config(config)
        self.desired_state.idle_ttl_s = config.eviction.idle_ttl
        self.desired_state.scale_out_after_s = config.placement.scale_out_after
        self._wakeup.set()

    def operator_snapshot(self) -> FleetSnapshot:
        """Return the fleet as operators see it: with pins, the reasons for placements, and when idle models unload."""
        snapshot = with_pins(self._fleet.snapshot, self.directives.pins)
        failures, now = self._scheduler.failures.failed_models, self._clock.monotonic()
        reason = self.decision_log.load_reasons
        return with_reasons(
            snapshot, reason, self._model_configs, self.desired_state, failures, now
        )

    @property
    def drain_timeout_s(self) -> float:
        """Seconds that requests of an instance to be unloaded may continue."""
        return self._config.eviction.drain_timeout

    def _post(self, posted: Event) -> None:
        self._inbox.append(posted)
        self._wakeup.set()

    # -- effects of the scheduler ------------------------------------------------------------

    @override
    def grant(self, request_id: int, instance: InstanceId) -> None:
        future = self._futures.pop(request_id, None)
        if future is not None and not future.done():
            future.set_result(instance)

    @override
    def refuse(self, request_id: int, error: CortexError) -> None:
        future = self._futures.pop(request_id, None)
        if future is not None and not future.done():
            if isinstance(error, ModelLoading):
                self._add_eta(error)
            future.set_exception(error)

    def _add_eta(self, error: ModelLoading) -> None:
        """Add the expected time to an error about an expired deadline, and ask the client to retry then."""
        progress = self.progress(str(error.details["model"]))
        if progress is not None and progress.eta_s is not None:
            error.details["loading"]["eta_s"] = round(progress.eta_s, 1)
            error.retry_after = min(60.0, max(1.0, progress.eta_s))

    @override
    def evict(self, order: LoadOrder) -> None:
        self._executor.evict(order, self.drain_timeout_s)

    @override
    def start_load(self, order: LoadOrder) -> None:
        self.decision_log.record_load(order)
        self._executor.start_load(order)

    @override
    def cancel_eviction(self, order: LoadOrder) -> None:
        self._executor.cancel_eviction(order)

    @override
    def cancel_load(self, order: LoadOrder) -> None:
        self._executor.cancel_load(order)
