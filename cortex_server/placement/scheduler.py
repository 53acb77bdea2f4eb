"""The state machine of waiting requests and pending loads.

Pure: events arrive as method calls with the current time, effects leave through `Effects`, and `step` does whatever
has become possible. The controller calls every method from its one task, so nothing here is locked.

A load passes through these stages::

    evict (drain and unload) -> start (sent to the node) -> admitted -> ready
              |                             |                   |
          cancelled                  refused: replan      failed: answer with the error
                                                          lost: replan

Requests for the same model wait together and are answered together, so A B C A B C on one device becomes A A B B C C;
models take turns by their oldest request, so none starves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, CortexError
from cortex_common.schema.fleet import InstanceView, NodeState
from cortex_common.schema.instances import OUT_OF_MEMORY, InstanceId, InstanceState, ModelId
from cortex_server.placement import load_errors
from cortex_server.placement.failure_backoff import FailureBackoff
from cortex_server.placement.load_queue import LoadKey, LoadQueue, LoadQueues, LoadRequest
from cortex_server.placement.overlay import Overlay, Pins, Reservation
from cortex_server.placement.pending_loads import Effects, LoadOrder, PendingLoad, Stage
from cortex_server.placement.planner import find_existing, plan_with_failures
from cortex_server.placement.plans import Impossible, Join, Load, Serve, Wait
from cortex_server.placement.policy import Policy
from cortex_server.placement.state import ClusterState, PlacementRequest

VISIBILITY_TIMEOUT_S = 20.0
"""A node reports an admitted load with its next event; one that it has not reported by then is lost."""

UNREACHABLE_TIMEOUT_S = 15.0
"""A load on a node that is unreachable for this long is planned again elsewhere."""

MAX_LOSSES = 4
"""Lost loads of a model in a row after which its requests fail instead of being planned again."""


MAX_OUT_OF_MEMORY = 4
"""Engines of a model that run out of memory in a row after which its requests fail instead of being planned again."""


OUT_OF_MEMORY_SETTLE_S = 3.0
"""Seconds after an engine ran out of memory in which its node's memory can still be becoming free."""


class Scheduler:
    """Decides when to grant, load, evict and refuse; see the module docstring.

    Args:
        effects: carries decisions out.
        policy: the operator's settings; may be replaced at any time.
        new_id: returns the id of a new instance of a model.
    """

    def __init__(
        self, effects: Effects, policy: Policy, new_id: Callable[[str], InstanceId]
    ) -> None:
        self.policy = policy
        self._effects = effects
        self._new_id = new_id
        self._queues = LoadQueues()
        self._loads: dict[InstanceId, PendingLoad] = {}
        self._cancelled: dict[InstanceId, LoadOrder] = {}
        self._failures = FailureBackoff()
        self._wake: float | None = None

    # -- state -------------------------------------------------------------------------------

    @property
    def queues(self) -> LoadQueues:
        """The waiting requests."""
        return self._queues

    @property
    def loads(self) -> tuple[PendingLoad, ...]:
        """The pending loads."""
        return tuple(self._loads.values())

    def overlay(self, pins: Pins = frozenset()) -> Overlay:
        """Return the decisions that no snapshot shows yet."""
        return Overlay(
            reservations=tuple(
                Reservation(
                    load.order.instance,
                    ModelId(load.key.model),
                    load.order.plan.node,
                    load.order.plan.devices,
                    load.order.plan.shape.size.device_mb,
                    load.order.plan.evictions,
                )
                for load in self._loads.values()
            ),
            draining=frozenset(
                eviction
                for load in self._loads.values()
                if load.stage is Stage.EVICTING
                for eviction in load.order.plan.evictions
            ),
            pins=pins,
        )

    def next_wake(self) -> float | None:
        """Return when `step` is due even without an event, in monotonic seconds; None if nothing is waited for."""
        if not self._queues and not self._loads:
            return None  # what was due for a request that has left since is due no more
        times = [t for t in (self._wake, self._queues.next_deadline()) if t is not None]
        return min(times, default=None)

    @property
    def failures(self) -> FailureBackoff:
        """Recent failures; only the scheduler records them."""
        return self._failures

    # -- events ------------------------------------------------------------------------------

    def enqueue(self, request: LoadRequest, now: float) -> None:
        """Add a request; it is answered by exactly one grant or refusal, unless it is cancelled."""
        model = request.key.model
        limit = request.model_config.max_waiting or self.policy.max_waiting
        if request.force:
            self._failures.clear(model)
        if (failure := self._failures.active_failure(model, now)) is not None:
            error = load_errors.load_failed(model, failure, failure.until - now)
            self._effects.refuse(request.id, error)
        elif self._queues.count(model) >= limit:
            self._effects.refuse(request.id, load_errors.queue_full(model, limit))
        else:
            self._queues.add(request)

    def cancel(self, request_id: int) -> None:
        """Remove a request whose client has gone; cancel the eviction for a load that no other request waits for."""
        request = self._queues.remove(request_id)
        if request is not None and request.key not in self._queues:
            self._cancel_eviction(request.key)

    def evicted(self, instance: InstanceId, now: float) -> None:
        """Record that the evictions of a load are done; send the load if a request still waits for it."""
        load = self._loads.get(instance)
        if load is None:
            return
        if load.key in self._queues:
            load.stage, load.stage_since = Stage.STARTING, now
            self._effects.start_load(load.order)
        else:
            del self._loads[instance]

    def eviction_failed(self, instance: InstanceId, undrainable: InstanceId, now: float) -> None:
        """Record that an instance would not drain or unload: protect it for a while and plan again."""
        self._loads.pop(instance, None)
        self._failures.record_undrainable(undrainable, now + 12 * max(self.policy.patience_s, 1.0))

    def admitted(self, instance: InstanceId, actual: InstanceId, now: float) -> None:
        """Record that the node accepted a load.

        Args:
            instance: the instance that was ordered.
            actual: the instance that serves the order: another where the node was already loading it for another
                gateway.
            now: monotonic seconds.
        """
        if (cancelled := self._cancelled.pop(instance, None)) is not None:
            self._effects.cancel_load(replace(cancelled, instance=actual))
        elif (load := self._loads.pop(instance, None)) is not None:
            load.order = replace(load.order, instance=actual)
            load.stage, load.stage_since = Stage.LOADING, now
            self._loads[actual] = load

    def refused(self, instance: InstanceId, now: float) -> None:
        """Record that the node lacks memory after all or is unreachable; plan again."""
        self._cancelled.pop(instance, None)
        if (load := self._loads.pop(instance, None)) is not None:
            self._failures.record_refusal(load.key.model, load.order.plan.node, now)

    def failed(self, instance: InstanceId, reason: str, now: float) -> None:
        """Record that the node lacks what the load needs: plan elsewhere; requests fail once no node is left."""
        self._cancelled.pop(instance, None)
        if (load := self._loads.pop(instance, None)) is not None:
            node = load.order.plan.node
            self._failures.record_unable(load.key.model, node, reason, now)

    def _fail_load(
        self, instance: InstanceId, reason: str, now: float, *, engine_started: bool
    ) -> None:
        """Refuse every request that waits for a load."""
        if (load := self._loads.pop(instance, None)) is not None:
            model = load.key.model
            error = self._record_failure(model, reason, now, engine_started=engine_started)
            for queue in self._queues.for_model(model):
                self._refuse_all(queue.key, error)

    def _record_failure(
        self, model: str, reason: str, now: float, *, engine_started: bool
    ) -> CortexError:
        """Record that a model can't be loaded for a while; return the error for its requests."""
        failure = self._failures.record_failure(
            model,
            reason,
            now,
            backoff=self.policy.load_backoff,
            engine_started=engine_started,
        )
        return load_errors.load_failed(model, failure, failure.until - now)

    def cancel_model(self, model: str) -> None:
        """Refuse the requests for a model and drop its pending loads, because an operator unloads it.

        The caller unloads the instances that nodes report already.
        """
        error = Conflict(f"model {model!r} was unloaded by an operator", retry_after=1.0)
        for queue in self._queues.for_model(model):
            self._refuse_all(queue.key, error)
        for instance, load in list(self._loads.items()):
            if load.key.model == model:
                if load.stage is Stage.EVICTING:
                    self._effects.cancel_eviction(load.order)
                elif load.stage is Stage.STARTING:
                    self._cancelled[instance] = load.order
                elif not load.visible:
                    self._effects.cancel_load(load.order)
                del self._loads[instance]
        self._failures.clear(model)

    def model_config_changed(self, model_config: ModelConfig, _now: float) -> None:
        """Forget failures under the old model config, and use the new one for waiting requests."""
        self._failures.clear(model_config.id)
        self._queues.update_model_config(model_config)

    def close(self, error: CortexError) -> None:
        """Refuse every request; nothing more is started."""
        for queue in self._queues.by_age():
            self._refuse_all(queue.key, error)

    # -- decisions ---------------------------------------------------------------------------

    def step(self, view: Callable[[Overlay], ClusterState], now: float) -> None:
        """Answer requests, and start and give up loads, as far as possible.

        Args:
            view: returns the state of the cluster under an overlay; called again after each decision.
            now: monotonic seconds.
        """
        self._wake = None
        self._failures.prune(now, self.policy.load_backoff.max_s)
        for at in self._failures.undrainable.values():
            self._wake_by(at, now)
        for request in self._queues.pop_expired(now):
            load, position = self.load_of(request), self._queues.position_of(request)
            self._effects.refuse(
                request.id, load_errors.still_loading(request.key.model, load, position)
            )
            if request.key not in self._queues:
                self._cancel_eviction(request.key)
        cluster = view(self.overlay())
        self._track_loads(cluster, now)
        cluster = view(self.overlay())
        loading = {u.key for u in self._loads.values()}
        for queue in self._queues.by_age():
            if queue.key in loading:
                self._grant_if_ready(queue.key, cluster)
            elif self._process_queue(queue, cluster, now):
                cluster = view(self.overlay())

    def load_of(self, request: LoadRequest) -> PendingLoad | None:
        """Return the pending load that a request waits for, if there is one."""
        return next((u for u in self._loads.values() if u.key == request.key), None)

    def _grant_if_ready(self, key: LoadKey, cluster: ClusterState) -> None:
        """Answer requests whose load is pending if another instance is ready already.

        Otherwise the load decides: if it is lost, it is planned again, but only once while its node is unreachable.
        """
        existing = (
            None if key.replica else find_existing(ModelId(key.model), key.constraints, cluster)
        )
        if isinstance(existing, Serve):
            self._grant_all(key, existing.instances[0])

    def _process_queue(self, queue: LoadQueue, cluster: ClusterState, now: float) -> bool:
        """Act on the plan for a queue; return whether a decision was made that later queues must see."""
        key = queue.key
        refusing, unable = (
            self._refusing_nodes(key.model, now),
            self._failures.unable_nodes(key.model, now),
        )
        request = PlacementRequest(
            queue.model_config,
            constraints=key.constraints,
            waited_s=now - queue.queued_at,
            replica=key.replica,
            may_evict=key.may_evict,
        )
        decision = plan_with_failures(request, cluster, self.policy, self._failures, now)
        queue.wait_reason = decision.reason if isinstance(decision, Wait) else None
        match decision:
            case Serve(instances):
                self._grant_all(key, instances[0])
            case Load() as load:
                self._begin_load(queue, load, cluster, now)
                return True
            case Impossible() if unable and not refusing:
                error = self._record_failure(
                    key.model, "; ".join(unable.values()), now, engine_started=False
                )
                self._refuse_all(key, error)
            case Impossible() if self._is_settling(key.model, now):
                pass
            case Impossible() if not refusing and (
                reason := self._failures.out_of_memory_reason(key.model)
            ):
                error = self._record_failure(key.model, reason, now, engine_started=True)
                self._refuse_all(key, error)
            case Impossible() as impossible if not refusing:
                self._refuse_all(key, load_errors.impossible(key.model, impossible))
            case Join():
                pass
            case _:
                for extra_s in (0.0, self.policy.min_residency_s):
                    self._wake_by(queue.queued_at + self.policy.patience_s + extra_s, now)
        return False

    def _begin_load(self, queue: LoadQueue, load: Load, cluster: ClusterState, now: float) -> None:
        model = queue.key.model
        known_instances = None
        if (
            not queue.key.constraints.devices
        ):  # an instance elsewhere does not satisfy explicit devices
            reported = (r.node.instances for r in cluster.capacities if r.node.name == load.node)
            pending = (i for i, u in self._loads.items() if u.key.model == model)
            known_instances = frozenset(pending).union(
                i.id for v in reported for i in v if i.model == model
            )
        order = LoadOrder(self._new_id(model), queue.model_config, load, known_instances)
        stage = Stage.EVICTING if load.evictions else Stage.STARTING
        self._loads[order.instance] = PendingLoad(order, queue.key, stage, now)
        if load.evictions:
            self._effects.evict(order)
        else:
            self._effects.start_load(order)

    def _track_loads(self, cluster: ClusterState, now: float) -> None:
        """Update the pending loads from what their nodes report."""
        reported = {i.id: i for capacity in cluster.capacities for i in capacity.node.instances}
        states = {capacity.node.name: capacity.node.state for capacity in cluster.capacities}
        for instance, load in list(self._loads.items()):
            if load.stage is Stage.EVICTING:
                continue
            view = reported.get(instance)
            state = states.get(load.order.plan.node)
            if state is not NodeState.UP:
                self._track_unreachable(instance, load, now)
            elif view is None:
                load.unreachable_since = None
                self._track_invisible(instance, load, now)
            else:
                load.visible, load.unreachable_since = True, None
                self._track_visible(load, view, now)

    def _track_visible(self, load: PendingLoad, view: InstanceView, now: float) -> None:
        if view.state is InstanceState.READY:
            del self._loads[view.id]
            model = load.key.model
            self._failures.record_success(model)
            self._grant_all(load.key, view.id)
        elif view.state is InstanceState.FAILED:
            reason = view.error or "the engine exited while loading"
            if view.failure == OUT_OF_MEMORY:
                self._handle_out_of_memory(view.id, load, reason, now)
                return
            self._failures.record_crash(load.key.model, load.order.plan.node, now)
            self._fail_load(view.id, reason, now, engine_started=True)
        elif view.state is InstanceState.STOPPED:
            self._handle_lost_load(view.id, load, now)

    def _handle_out_of_memory(
        self, instance: InstanceId, load: PendingLoad, reason: str, now: float
    ) -> None:
        """Plan again, on other devices or with more memory; fail the requests after several attempts."""
        model = load.key.model
        if self._failures.record_out_of_memory(model, load.order.plan, reason, now) >= (
            MAX_OUT_OF_MEMORY
        ):
            self._fail_load(instance, reason, now, engine_started=True)
        else:
            del self._loads[instance]

    def _track_invisible(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        if load.stage is not Stage.LOADING:
            return
        if load.visible or now - load.stage_since > VISIBILITY_TIMEOUT_S:
            self._handle_lost_load(instance, load, now)
        else:
            self._wake_by(load.stage_since + VISIBILITY_TIMEOUT_S + 0.01, now)

    def _track_unreachable(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        if load.unreachable_since is None:
            load.unreachable_since = now
        if now - load.unreachable_since >= UNREACHABLE_TIMEOUT_S:
            self._handle_lost_load(instance, load, now)
        else:
            self._wake_by(load.unreachable_since + UNREACHABLE_TIMEOUT_S, now)

    def _handle_lost_load(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        model, node = load.key.model, load.order.plan.node
        if self._failures.record_loss(model) >= MAX_LOSSES:
            self._fail_load(instance, f"node {node} lost the load", now, engine_started=False)
            return
        del self._loads[instance]
        self._failures.record_refusal(model, node, now)

    def _is_settling(self, model: str, now: float) -> bool:
        """Return whether a model's engine ran out of memory a moment ago; the plan is made again afterwards."""
        at = self._failures.out_of_memory_at(model)
        if at is None or now - at >= OUT_OF_MEMORY_SETTLE_S:
            return False
        self._wake_by(at + OUT_OF_MEMORY_SETTLE_S, now)
        return True

    def _refusing_nodes(self, model: str, now: float) -> frozenset[str]:
        nodes = self._failures.refusing_nodes(model, now)
        for at in nodes.values():
            self._wake_by(at, now)
        return frozenset(nodes)

    def _wake_by(self, at: float, now: float) -> None:
        if at > now and (self._wake is None or at < self._wake):
            self._wake = at

    def _cancel_eviction(self, key: LoadKey) -> None:
        for instance, load in list(self._loads.items()):
            if load.key == key and load.stage is Stage.EVICTING:
                del self._loads[instance]
                self._effects.cancel_eviction(load.order)

    def _grant_all(self, key: LoadKey, instance: InstanceId) -> None:
        for request in self._queues.pop_all(key):
            self._effects.grant(request.id, instance)

    def _refuse_all(self, key: LoadKey, error: CortexError) -> None:
        for request in self._queues.pop_all(key):
            self._effects.refuse(request.id, error)
        self._cancel_eviction(key)
