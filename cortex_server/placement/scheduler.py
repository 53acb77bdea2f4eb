"""The state machine of requests that wait and loads under way.

Pure: events come in as method calls with the time, effects go out through `Effects`, and `step` does whatever
has become possible. The conductor calls every method from its one task, so nothing here is locked.

A load passes through stages::

    make room (evictions drain and unload) -> start (the node is asked) -> admitted -> ready
                     |                                |                      |
                 abandoned                     refused: plan anew       failed: tell the waiters
                                                                        lost: plan anew

Requests for the same model wait together and are answered together, so A B C A B C over one device becomes
A A B B C C; models take turns by their longest waiter, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, CortexError
from cortex_common.schema.fleet import InstanceView, NodeState
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement import load_errors
from cortex_server.placement.capacity import Overlay, Pins, Reservation
from cortex_server.placement.failure_backoff import FailureBackoff
from cortex_server.placement.load_queue import LoadKey, LoadQueue, LoadQueues, LoadRequest
from cortex_server.placement.pending_loads import Effects, LoadOrder, PendingLoad, Stage
from cortex_server.placement.planner import Impossible, Join, Load, Serve, Wait, decide, present
from cortex_server.placement.policy import Policy
from cortex_server.placement.state import ClusterState, PlacementRequest

APPEARS_WITHIN_S = 20.0
"""A node that admitted a load shows it with its next event; one that has not by then has lost it."""

UNREACHABLE_FOR_S = 15.0
"""A load on a node that does not answer for so long is planned anew elsewhere."""

MOST_LOSSES = 4
"""Loads of a model lost in a row before its waiters are told instead of trying once more."""


class Scheduler:
    """See the module.

    Args:
        effects: what carries decisions out.
        policy: of the operator; may be replaced at any time.
        new_id: makes the id of a new instance.
    """

    def __init__(
        self, effects: Effects, policy: Policy, new_id: Callable[[str], InstanceId]
    ) -> None:
        self.policy = policy
        self._effects = effects
        self._new_id = new_id
        self._waiting = LoadQueues()
        self._loads: dict[InstanceId, PendingLoad] = {}
        self._unwanted: dict[InstanceId, LoadOrder] = {}
        self._failures = FailureBackoff()
        self._wake: float | None = None

    # -- what is going on --------------------------------------------------------------------

    @property
    def waiting(self) -> LoadQueues:
        """Everybody who waits."""
        return self._waiting

    @property
    def loads(self) -> tuple[PendingLoad, ...]:
        """Loads under way."""
        return tuple(self._loads.values())

    def overlay(self, pins: Pins = frozenset()) -> Overlay:
        """What is decided and not yet visible in a snapshot."""
        return Overlay(
            reservations=tuple(
                Reservation(
                    u.order.instance,
                    ModelId(u.key.model),
                    u.order.plan.node,
                    u.order.plan.devices,
                    u.order.plan.shape.size.device_mb,
                    u.order.plan.evictions,
                )
                for u in self._loads.values()
            ),
            leaving=frozenset(
                v
                for u in self._loads.values()
                if u.stage is Stage.MAKING_ROOM
                for v in u.order.plan.evictions
            ),
            pins=pins,
        )

    def next_wake(self) -> float | None:
        """When `step` has something to do though nothing happens; monotonic seconds."""
        times = [t for t in (self._wake, self._waiting.next_deadline()) if t is not None]
        return min(times, default=None)

    @property
    def failures(self) -> FailureBackoff:
        """What went wrong lately; only the scheduler enters it."""
        return self._failures

    # -- events ------------------------------------------------------------------------------

    def ask(self, ask: LoadRequest, now: float) -> None:
        """Somebody wants a model; answered by exactly one grant or refusal, unless cancelled."""
        model = ask.key.model
        most = ask.model_config.max_waiting or self.policy.max_waiting
        if ask.force:
            self._failures.forgive(model)
        if (failure := self._failures.failed_lately(model, now)) is not None:
            error = load_errors.load_failed(model, failure, failure.until - now)
            self._effects.refuse(ask.id, error)
        elif self._waiting.count(model) >= most:
            self._effects.refuse(ask.id, load_errors.queue_full(model, most))
        else:
            self._waiting.add(ask)

    def cancel(self, waiter: int) -> None:
        """A waiter has gone; a load that nobody else wants is given up if its node was not asked yet."""
        ask = self._waiting.remove(waiter)
        if ask is not None and ask.key not in self._waiting:
            self._abandon(ask.key)

    def room_made(self, instance: InstanceId, now: float) -> None:
        """The evictions of a load are done; the node is asked if anybody still waits."""
        load = self._loads.get(instance)
        if load is None:
            return
        if load.key in self._waiting:
            load.stage, load.since = Stage.STARTING, now
            self._effects.start(load.order)
        else:
            del self._loads[instance]

    def room_failed(self, instance: InstanceId, stuck: InstanceId, now: float) -> None:
        """A victim did not drain or go; it is spared for a while and the load planned anew."""
        self._loads.pop(instance, None)
        self._failures.would_not_go(stuck, now + 12 * max(self.policy.patience_s, 1.0))

    def admitted(self, instance: InstanceId, actual: InstanceId, now: float) -> None:
        """The node has taken the load on; `actual` differs where it had begun the same work for another gateway."""
        if (unwanted := self._unwanted.pop(instance, None)) is not None:
            self._effects.cancel_load(replace(unwanted, instance=actual))
        elif (load := self._loads.pop(instance, None)) is not None:
            load.order = replace(load.order, instance=actual)
            load.stage, load.since = Stage.LOADING, now
            self._loads[actual] = load

    def refused(self, instance: InstanceId, now: float) -> None:
        """The node has no room for it after all, or can't be reached; planned anew."""
        self._unwanted.pop(instance, None)
        if (load := self._loads.pop(instance, None)) is not None:
            self._failures.refused(load.key.model, load.order.plan.node, now)

    def failed(self, instance: InstanceId, reason: str, now: float) -> None:
        """The node could not begin with it; planned anew elsewhere, and where no node is left, waiters are told."""
        self._unwanted.pop(instance, None)
        if (load := self._loads.pop(instance, None)) is not None:
            node = load.order.plan.node
            self._failures.could_not_begin(load.key.model, node, reason, now)

    def _fail(self, instance: InstanceId, reason: str, now: float, *, started: bool) -> None:
        """Everybody who waits for it is told why."""
        if (load := self._loads.pop(instance, None)) is not None:
            model = load.key.model
            error = self._failure(model, reason, now, started=started)
            for queue in self._waiting.of(model):
                self._refuse_all(queue.key, error)

    def _failure(self, model: str, reason: str, now: float, *, started: bool) -> CortexError:
        """Note that a model can't be loaded for a while; what those are told who wait for it."""
        policy = self.policy
        failure = self._failures.failed(
            model,
            reason,
            now,
            first_s=policy.backoff_s,
            most_s=policy.max_backoff_s,
            started=started,
        )
        return load_errors.load_failed(model, failure, failure.until - now)

    def drop(self, model: str) -> None:
        """An operator unloads the model: nobody waits for it, and its loads are given up.

        What its nodes show already is unloaded by whoever calls this.
        """
        error = Conflict(f"model {model!r} was unloaded by an operator", retry_after=1.0)
        for queue in self._waiting.of(model):
            self._refuse_all(queue.key, error)
        for instance, load in list(self._loads.items()):
            if load.key.model == model:
                if load.stage is Stage.MAKING_ROOM:
                    self._effects.abandon(load.order)
                elif load.stage is Stage.STARTING:
                    self._unwanted[instance] = load.order
                elif not load.seen:
                    self._effects.cancel_load(load.order)
                del self._loads[instance]
        self._failures.forgive(model)

    def model_config_changed(self, model_config: ModelConfig, _now: float) -> None:
        """What was tried by the old one says nothing about this; who waits is served by this."""
        self._failures.forgive(model_config.id)
        self._waiting.use_model_config(model_config)

    def close(self, error: CortexError) -> None:
        """Answer everybody; nothing more is started."""
        for queue in self._waiting.queues():
            self._refuse_all(queue.key, error)

    # -- what has become possible ------------------------------------------------------------

    def step(self, look: Callable[[Overlay], ClusterState], now: float) -> None:
        """Answer, start and give up whatever can be.

        Args:
            look: the world with what is decided laid over it; called again after each decision.
            now: monotonic seconds.
        """
        self._wake = None
        self._failures.forget_old(now, self.policy.max_backoff_s)
        for until in self._failures.spared.values():
            self._wake_by(until, now)
        for ask in self._waiting.overdue(now):
            load, place = self.load_of(ask), self._waiting.place_of(ask)
            self._effects.refuse(ask.id, load_errors.still_loading(ask.key.model, load, place))
            if ask.key not in self._waiting:
                self._abandon(ask.key)
        cluster = look(self.overlay())
        self._follow_loads(cluster, now)
        cluster = look(self.overlay())
        loading = {u.key for u in self._loads.values()}
        for queue in self._waiting.queues():
            if queue.key in loading:
                self._serve_early(queue.key, cluster)
            elif self._serve(queue, cluster, now):
                cluster = look(self.overlay())

    def load_of(self, ask: LoadRequest) -> PendingLoad | None:
        """The load that a waiter waits for, if there is one."""
        return next((u for u in self._loads.values() if u.key == ask.key), None)

    def _serve_early(self, key: LoadKey, cluster: ClusterState) -> None:
        """Answer those whose load is under way if another instance is ready already.

        Else that load decides: when it is lost, it is planned anew, and not twice while a node is silent.
        """
        found = None if key.replica else present(ModelId(key.model), key.where, cluster)
        if isinstance(found, Serve):
            self._grant_all(key, found.instances[0])

    def _serve(self, queue: LoadQueue, cluster: ClusterState, now: float) -> bool:
        """Do what can be done for a queue; whether something was decided that others must see."""
        key = queue.key
        resting, unable = self._avoided(key.model, now), self._failures.unable(key.model, now)
        request = PlacementRequest(
            queue.model_config,
            where=key.where,
            waited_s=now - queue.since,
            replica=key.replica,
            may_evict=key.may_evict,
        )
        decided = decide(request, cluster, self.policy, self._failures, now)
        queue.why = decided.why if isinstance(decided, Wait) else None
        match decided:
            case Serve(instances):
                self._grant_all(key, instances[0])
            case Load() as load:
                self._begin(queue, load, cluster, now)
                return True
            case Impossible() if unable and not resting:
                error = self._failure(key.model, "; ".join(unable.values()), now, started=False)
                self._refuse_all(key, error)
            case Impossible() as found if not resting:
                self._refuse_all(key, load_errors.impossible(key.model, found))
            case Join():
                pass
            case _:
                for seconds in (0.0, self.policy.min_residency_s):
                    self._wake_by(queue.since + self.policy.patience_s + seconds, now)
        return False

    def _begin(self, queue: LoadQueue, load: Load, cluster: ClusterState, now: float) -> None:
        model = queue.key.model
        known = None
        if not queue.key.where.devices:  # a copy elsewhere is not what somebody named devices for
            there = (r.node.instances for r in cluster.capacities if r.node.name == load.node)
            mine = (i for i, u in self._loads.items() if u.key.model == model)
            known = frozenset(mine).union(i.id for v in there for i in v if i.model == model)
        order = LoadOrder(self._new_id(model), queue.model_config, load, known)
        stage = Stage.MAKING_ROOM if load.evictions else Stage.STARTING
        self._loads[order.instance] = PendingLoad(order, queue.key, stage, now)
        if load.evictions:
            self._effects.make_room(order)
        else:
            self._effects.start(order)

    def _follow_loads(self, cluster: ClusterState, now: float) -> None:
        """See what became of loads whose nodes were asked."""
        views = {i.id: i for capacity in cluster.capacities for i in capacity.node.instances}
        states = {capacity.node.name: capacity.node.state for capacity in cluster.capacities}
        for instance, load in list(self._loads.items()):
            if load.stage is Stage.MAKING_ROOM:
                continue
            view = views.get(instance)
            state = states.get(load.order.plan.node)
            if state is not NodeState.UP:
                self._follow_unreachable(instance, load, now)
            elif view is None:
                load.unreachable_since = None
                self._follow_unseen(instance, load, now)
            else:
                load.seen, load.unreachable_since = True, None
                self._follow_seen(load, view, now)

    def _follow_seen(self, load: PendingLoad, view: InstanceView, now: float) -> None:
        if view.state is InstanceState.READY:
            del self._loads[view.id]
            model = load.key.model
            self._failures.over(model)
            self._grant_all(load.key, view.id)
        elif view.state is InstanceState.FAILED:
            reason = view.error or "the engine ended while loading"
            self._failures.has_crashed(load.key.model, load.order.plan.node, now)
            self._fail(view.id, reason, now, started=True)
        elif view.state is InstanceState.STOPPED:
            self._lose(view.id, load, now)

    def _follow_unseen(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        if load.stage is not Stage.LOADING:
            return
        if load.seen or now - load.since > APPEARS_WITHIN_S:
            self._lose(instance, load, now)
        else:
            self._wake_by(load.since + APPEARS_WITHIN_S + 0.01, now)

    def _follow_unreachable(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        if load.unreachable_since is None:
            load.unreachable_since = now
        if now - load.unreachable_since >= UNREACHABLE_FOR_S:
            self._lose(instance, load, now)
        else:
            self._wake_by(load.unreachable_since + UNREACHABLE_FOR_S, now)

    def _lose(self, instance: InstanceId, load: PendingLoad, now: float) -> None:
        model, node = load.key.model, load.order.plan.node
        if self._failures.lost(model) >= MOST_LOSSES:
            self._fail(instance, f"node {node} lost the load", now, started=False)
            return
        del self._loads[instance]
        self._failures.refused(model, node, now)

    def _avoided(self, model: str, now: float) -> frozenset[str]:
        found = self._failures.avoided(model, now)
        for until in found.values():
            self._wake_by(until, now)
        return frozenset(found)

    def _wake_by(self, at: float, now: float) -> None:
        if at > now and (self._wake is None or at < self._wake):
            self._wake = at

    def _abandon(self, key: LoadKey) -> None:
        for instance, load in list(self._loads.items()):
            if load.key == key and load.stage is Stage.MAKING_ROOM:
                del self._loads[instance]
                self._effects.abandon(load.order)

    def _grant_all(self, key: LoadKey, instance: InstanceId) -> None:
        for ask in self._waiting.empty(key):
            self._effects.grant(ask.id, instance)

    def _refuse_all(self, key: LoadKey, error: CortexError) -> None:
        for ask in self._waiting.empty(key):
            self._effects.refuse(ask.id, error)
        self._abandon(key)
