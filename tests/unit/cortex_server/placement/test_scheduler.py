"""The scheduler against a simulated fleet with its own ledger: random histories, and single scenarios."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from placement_states import NOW, device, instance, model_config, node

from cortex_common.backoff import Backoff
from cortex_common.errors import Busy, CortexError, DoesNotFit, LoadFailed, ModelLoading
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_common.schema.plans import PlanView
from cortex_server.lifecycle.views import plan_view
from cortex_server.placement import load_errors
from cortex_server.placement.capacity import CapacityCache
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.failure_backoff import FailureRecord
from cortex_server.placement.fit import PlacementConstraints
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.overlay import Overlay
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.planner import dry_run
from cortex_server.placement.plans import Impossible
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import (
    MAX_OUT_OF_MEMORY,
    OUT_OF_MEMORY_SETTLE_S,
    UNREACHABLE_TIMEOUT_S,
    VISIBILITY_TIMEOUT_S,
    Scheduler,
)
from cortex_server.placement.state import ClusterState, PlacementRequest

SIZES = {"a": 100, "b": 100, "c": 150, "d": 250, "huge": 9999}


class Bench:
    """A scheduler with recorded effects and two nodes of 300 MiB each, whose ledgers refuse what does not fit."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.now = 0.0
        self.answers: dict[int, InstanceId | CortexError] = {}
        self.answered: Counter[int] = Counter()
        self.asked: set[int] = set()
        self.making: dict[InstanceId, LoadOrder] = {}
        self.starting: dict[InstanceId, LoadOrder] = {}
        self.started: list[str] = []
        self.cancelled_loads: list[InstanceId] = []
        self.instances: dict[InstanceId, InstanceView] = {}
        self.states = {"n1": NodeState.UP, "n2": NodeState.UP}
        self.totals = {"n1": 300, "n2": 300}
        self._capacity_cache = CapacityCache()
        self._made = 0
        self.scheduler = Scheduler(self, policy or Policy(), self._new_id)

    def _new_id(self, model: str) -> InstanceId:
        self._made += 1
        return InstanceId(f"{model}-{self._made}")

    # -- effects ---------------------------------------------------------------------------

    def grant(self, waiter: int, instance: InstanceId) -> None:
        assert self.instances[instance].state is InstanceState.READY
        self.answers[waiter] = instance
        self.answered[waiter] += 1

    def refuse(self, waiter: int, error: CortexError) -> None:
        self.answers[waiter] = error
        self.answered[waiter] += 1

    def evict(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            assert not self.instances[candidate].pinned
        self.making[order.instance] = order

    def start_load(self, order: LoadOrder) -> None:
        assert self.scheduler.queues.count(order.model_config.id)
        self.started.append(order.model_config.id)
        self.starting[order.instance] = order

    def cancel_eviction(self, order: LoadOrder) -> None:
        del self.making[order.instance]

    def cancel_load(self, order: LoadOrder) -> None:
        self.cancelled_loads.append(order.instance)
        self.instances.pop(order.instance, None)

    # -- the fleet ---------------------------------------------------------------------------

    def free(self, name: str) -> int:
        return self.totals[name] - sum(
            i.vram_used_mb for i in self.instances.values() if i.node == name
        )

    def snapshot(self) -> FleetSnapshot:
        nodes = tuple(
            node(
                name,
                (device(0, total),),
                tuple(i for i in self.instances.values() if i.node == name),
                state=self.states[name],
            )
            for name, total in self.totals.items()
        )
        return FleetSnapshot(1, NOW + self.now, nodes)

    def view(self, overlay: Overlay) -> ClusterState:
        capacities = self._capacity_cache.capacities(self.snapshot(), overlay)
        return ClusterState(
            capacities=capacities, now=NOW + self.now, stats={"p": ModelStats(min_replicas=1)}
        )

    def step(self) -> None:
        self.scheduler.step(self.view, self.now)

    def ask(self, model: str, timeout_s: float = 600.0, key: LoadKey | None = None) -> int:
        waiter = len(self.asked) + 1
        self.asked.add(waiter)
        wanted = model_config(model, SIZES[model])
        ask = LoadRequest(waiter, wanted, key or LoadKey(model), self.now, self.now + timeout_s)
        self.scheduler.enqueue(ask, self.now)
        self.step()
        return waiter

    def unload(self, order: LoadOrder) -> None:
        """Unload the evictions of an order."""
        del self.making[order.instance]
        for candidate in order.plan.evictions:
            self.instances.pop(candidate, None)
        self.scheduler.evicted(order.instance, self.now)
        self.step()

    def admit(self, order: LoadOrder) -> bool:
        """Have the node answer an order according to its ledger."""
        del self.starting[order.instance]
        size = order.plan.shape.size.device_mb
        if size > self.free(order.plan.node):
            self.scheduler.refused(order.instance, self.now)
            self.step()
            return False
        self.instances[order.instance] = instance(
            order.model_config.id,
            order.plan.node,
            mb=size,
            id=order.instance,
            state=InstanceState.LOADING,
            started_at=NOW + self.now,
            last_used=NOW + self.now,
        )
        self.scheduler.admitted(order.instance, order.instance, self.now)
        self.step()
        return True

    def become(self, which: InstanceId, state: InstanceState) -> None:
        self.instances[which] = replace(self.instances[which], state=state, error="no such file")
        self.step()
        if state is InstanceState.FAILED:
            del self.instances[which]

    def load(self, model: str) -> InstanceId:
        """Load a model completely."""
        self.ask(model)
        while self.making:
            self.unload(next(iter(self.making.values())))
        order = next(o for o in self.starting.values() if o.model_config.id == model)
        assert self.admit(order)
        self.become(order.instance, InstanceState.READY)
        return order.instance

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.step()


class Histories(RuleBasedStateMachine):
    """Random events in any order; the scheduler's invariants hold throughout and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(Policy(max_waiting=5))
        self.cancelled: set[int] = set()

    def _some(self, data: st.DataObject, things: object) -> object:
        return data.draw(st.sampled_from(sorted(things)))  # type: ignore[call-overload]  # any collection of ids

    @rule(model=st.sampled_from(sorted(SIZES)), timeout_s=st.sampled_from([1.0, 600.0]))
    def ask(self, model: str, timeout_s: float) -> None:
        self.bench.ask(model, timeout_s)

    @rule(node=st.sampled_from(["n1", "n2"]), replica=st.booleans())
    def operator_asks(self, node: str, replica: bool) -> None:
        key = LoadKey("a", PlacementConstraints(node), replica=replica, may_evict=not replica)
        self.bench.ask("a", key=key)

    @precondition(lambda self: self.bench.asked - set(self.bench.answered) - self.cancelled)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiter = self._some(data, self.bench.asked - set(self.bench.answered) - self.cancelled)
        self.bench.scheduler.cancel(waiter)
        self.cancelled.add(waiter)
        self.bench.step()

    @precondition(lambda self: self.bench.making)
    @rule(data=st.data())
    def victims_leave(self, data: st.DataObject) -> None:
        self.bench.unload(self.bench.making[self._some(data, self.bench.making)])

    @precondition(lambda self: self.bench.making)
    @rule(data=st.data())
    def a_victim_does_not_drain(self, data: st.DataObject) -> None:
        order = self.bench.making.pop(self._some(data, self.bench.making))
        self.bench.scheduler.eviction_failed(
            order.instance, order.plan.evictions[0], self.bench.now
        )
        self.bench.step()

    @precondition(lambda self: self.bench.starting)
    @rule(data=st.data())
    def node_answers(self, data: st.DataObject) -> None:
        self.bench.admit(self.bench.starting[self._some(data, self.bench.starting)])

    @precondition(lambda self: self.bench.starting)
    @rule(data=st.data())
    def node_can_not_be_asked(self, data: st.DataObject) -> None:
        order = self.bench.starting.pop(self._some(data, self.bench.starting))
        self.bench.scheduler.refused(order.instance, self.bench.now)
        self.bench.step()

    def _in(self, state: InstanceState) -> set[InstanceId]:
        return {i.id for i in self.bench.instances.values() if i.state is state}

    @precondition(lambda self: self._in(InstanceState.LOADING))
    @rule(data=st.data(), to=st.sampled_from([InstanceState.READY] * 3 + [InstanceState.FAILED]))
    def load_ends(self, data: st.DataObject, to: InstanceState) -> None:
        self.bench.become(self._some(data, self._in(InstanceState.LOADING)), to)

    @precondition(lambda self: self._in(InstanceState.READY))
    @rule(data=st.data(), in_flight=st.sampled_from([0, 2]))
    def requests_come_and_go(self, data: st.DataObject, in_flight: int) -> None:
        which = self._some(data, self._in(InstanceState.READY))
        used = replace(
            self.bench.instances[which], in_flight=in_flight, last_used=NOW + self.bench.now
        )
        self.bench.instances[which] = used

    @precondition(lambda self: self.bench.instances)
    @rule(data=st.data())
    def an_instance_vanishes(self, data: st.DataObject) -> None:
        del self.bench.instances[self._some(data, self.bench.instances)]
        self.bench.step()

    @rule(name=st.sampled_from(["n1", "n2"]), state=st.sampled_from(NodeState))
    def a_node_comes_or_goes(self, name: str, state: NodeState) -> None:
        self.bench.states[name] = state
        self.bench.step()

    @rule(total=st.sampled_from([100, 300]))
    def memory_is_taken_or_returned(self, total: int) -> None:
        self.bench.totals["n2"] = total

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    @rule(model=st.sampled_from(["a", "b"]))
    def an_operator_unloads(self, model: str) -> None:
        self.bench.scheduler.cancel_model(model)
        for which in [i.id for i in self.bench.instances.values() if i.model == model]:
            del self.bench.instances[which]
        self.bench.step()

    @invariant()
    def each_waiter_has_at_most_one_answer(self) -> None:
        assert all(n == 1 for n in self.bench.answered.values())
        assert not self.cancelled & set(self.bench.answered)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        waiting = self.bench.asked - set(self.bench.answered) - self.cancelled
        assert len(self.bench.scheduler.queues) == len(waiting)

    @invariant()
    def a_victim_belongs_to_one_order(self) -> None:
        candidates = Counter(v for o in self.bench.making.values() for v in o.plan.evictions)
        assert all(n == 1 for n in candidates.values())

    @invariant()
    def orders_and_loads_agree(self) -> None:
        known = {u.order.instance for u in self.bench.scheduler.loads}
        assert set(self.bench.making) <= known

    def teardown(self) -> None:
        """Finish everything: every request is answered, and no load is pending."""
        bench = self.bench
        bench.states = dict.fromkeys(bench.states, NodeState.UP)
        for _ in range(200):
            if not bench.scheduler.queues and not bench.scheduler.loads:
                break
            for order in list(bench.making.values()):
                bench.unload(order)
            for order in list(bench.starting.values()):
                bench.admit(order)
            for which in self._in(InstanceState.LOADING):
                bench.become(which, InstanceState.READY)
            bench.instances = {k: replace(v, in_flight=0) for k, v in bench.instances.items()}
            bench.pass_time(10.0)
        assert not bench.scheduler.queues
        assert not bench.scheduler.loads
        assert set(bench.answered) | self.cancelled == bench.asked


TestHistories = Histories.TestCase
TestHistories.settings = settings(stateful_step_count=40)


def test_one_load_serves_all_waiting_requests() -> None:
    """However many requests a model has, it is loaded once, and all are answered when it is ready."""
    bench = Bench()
    waiters = [bench.ask("a") for _ in range(5)]
    (order,) = bench.starting.values()
    bench.admit(order)
    bench.become(order.instance, InstanceState.READY)
    assert [bench.answers[w] for w in waiters] == [order.instance] * 5
    assert bench.started == ["a"]


def test_interleaved_requests_are_served_model_by_model() -> None:
    """A B A B over memory for one model becomes two loads, not four."""
    bench = Bench()
    bench.totals = {"n1": 150, "n2": 0}
    waiters = [bench.ask(m) for m in ("c", "a", "c", "a")]
    (first,) = bench.starting.values()
    bench.admit(first)
    bench.become(first.instance, InstanceState.READY)
    bench.pass_time(30.0)
    bench.unload(next(iter(bench.making.values())))
    (second,) = bench.starting.values()
    bench.admit(second)
    bench.become(second.instance, InstanceState.READY)
    assert bench.started == ["c", "a"]
    assert [bench.answers[w] for w in waiters] == [first.instance, second.instance] * 2


def test_a_cancelled_wait_starts_no_load() -> None:
    """When the only request is cancelled during evictions, they stop and the load is never sent."""
    bench = Bench()
    bench.totals = {"n1": 300, "n2": 0}
    bench.load("d")
    waiter = bench.ask("c")
    bench.pass_time(6.0)
    assert bench.making
    bench.scheduler.cancel(waiter)
    assert not bench.making
    assert not bench.scheduler.loads
    assert bench.started == ["d"]


def test_a_thousand_cancelled_waits_leave_nothing() -> None:
    """A thousand cancelled requests leave no request, no load beyond the first, and no deadline."""
    bench = Bench()
    for _ in range(1000):
        bench.scheduler.cancel(bench.ask("a"))
    assert bench.started == ["a"]
    assert not bench.scheduler.queues
    assert bench.scheduler.next_wake() is None


def test_a_model_that_cannot_fit_is_refused_immediately() -> None:
    """A model larger than every device is refused with the numbers, and nothing is evicted for it."""
    bench = Bench()
    bench.load("d")
    waiter = bench.ask("huge")
    error = bench.answers[waiter]
    assert isinstance(error, DoesNotFit)
    assert error.details["refusals"][0]["missing_mb"] == 9999 - 50
    assert not bench.making


def test_a_failed_load_is_reported_and_backs_off() -> None:
    """The engine's reason reaches each request; requests during the growing back-off are refused without a load."""
    bench = Bench()
    pauses = []
    for _ in range(3):
        waiters = [bench.ask("a"), bench.ask("a")]
        (order,) = bench.starting.values()
        bench.admit(order)
        bench.become(order.instance, InstanceState.FAILED)
        for waiter in waiters:
            error = bench.answers[waiter]
            assert isinstance(error, LoadFailed)
            assert "no such file" in error.message
            assert error.hints == ("cortex models logs a",)
        pauses.append(error.retry_after)
        assert isinstance(bench.answers[bench.ask("a")], LoadFailed)
        assert not bench.starting
        bench.pass_time(pauses[-1])
    assert pauses == [2.0, 4.0, 8.0]


def crash(bench: Bench) -> str:
    """Crash the engine of a load, and wait until the next attempt; return the node's name."""
    waiter = bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    bench.become(order.instance, InstanceState.FAILED)
    error = bench.answers[waiter]
    assert isinstance(error, LoadFailed)
    bench.pass_time(error.retry_after or 0.0)
    return order.plan.node


def test_after_a_crash_another_node_is_tried() -> None:
    """One host's driver may be broken while the next host works; then every node gets a turn."""
    bench = Bench()
    assert [crash(bench) for _ in range(3)] == ["n1", "n2", "n1"]


def dry_run_view(bench: Bench, *, force: bool = False) -> PlanView:
    """Return what a plan for model a says now."""
    request, cluster = (
        PlacementRequest(model_config("a", SIZES["a"])),
        bench.view(bench.scheduler.overlay()),
    )
    failures = bench.scheduler.failures
    found = dry_run(request, cluster, bench.scheduler.policy, failures, bench.now, force=force)
    return plan_view(request, found, cluster, Policy(), failures.describe("a", bench.now))


def test_a_plan_considers_a_crash_like_the_load_does() -> None:
    """For a request another node is planned; for an operator, who overrides the failure, the same one."""
    bench = Bench()
    crashed = crash(bench)
    for_request, for_operator = dry_run_view(bench), dry_run_view(bench, force=True)
    assert for_operator.node == crashed
    assert for_operator.reason.endswith("; but an engine crashed with it there recently")
    (line,) = [line for line in for_request.ledger if line.node == crashed]
    assert (line.reason or "").endswith("; an engine crashed with it there recently")
    assert crash(bench) == for_request.node != crashed


def test_a_plan_right_after_a_crash_is_to_wait_for_all_but_operators() -> None:
    """A request would be refused, and nothing loaded for it, until the back-off ends."""
    bench = Bench(Policy(load_backoff=Backoff(initial_s=5.0, max_s=300.0)))
    bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    bench.become(order.instance, InstanceState.FAILED)
    assert dry_run_view(bench).action == "wait"
    assert dry_run_view(bench, force=True).action == "load"


def test_a_plan_avoids_a_node_that_has_just_refused() -> None:
    """For operators too: the load goes elsewhere, and waits where there is no other node."""
    bench = Bench()
    bench.ask("a")
    refused = []
    for _ in range(2):
        (order,) = bench.starting.values()
        del bench.starting[order.instance]
        bench.scheduler.refused(order.instance, bench.now)
        refused.append(order.plan.node)
        planned = dry_run_view(bench, force=True)
        assert planned.node not in refused
        bench.step()
    assert planned.action == "wait"
    assert "n1, n2 recently refused or lost it" in planned.reason


def test_nothing_is_evicted_for_another_attempt_after_a_crash() -> None:
    """The model itself may be at fault, which would cost every host what it has loaded."""
    bench = Bench()
    taken = bench.instances[bench.load("d")].node
    assert taken not in {crash(bench) for _ in range(2)}


def report_unable(bench: Bench, reason: str) -> str:
    """Have the node of the only started order lack what it needs; return its name."""
    (order,) = bench.starting.values()
    del bench.starting[order.instance]
    node = order.plan.node
    bench.scheduler.failed(order.instance, f"node {node} refused: {reason}", bench.now)
    bench.step()
    return node


def test_a_load_that_one_node_cannot_start_goes_to_another() -> None:
    """The weights may be on one host only; requests do not see the nodes that lack them."""
    bench = Bench()
    waiter = bench.ask("a")
    first = report_unable(bench, "no such file")
    (order,) = bench.starting.values()
    assert order.plan.node != first
    bench.admit(order)
    bench.become(order.instance, InstanceState.READY)
    assert bench.answers[waiter] == order.instance


def test_a_load_that_no_node_can_start_fails_and_is_retried() -> None:
    """The error has every node's reason; after the back-off all nodes are tried again."""
    bench = Bench(Policy(load_backoff=Backoff(initial_s=5.0, max_s=300.0)))
    waiter = bench.ask("a")
    names = {report_unable(bench, "no such file"), report_unable(bench, "no program")}
    assert names == {"n1", "n2"}
    error = bench.answers[waiter]
    assert isinstance(error, LoadFailed)
    assert "no such file" in error.message
    assert "no program" in error.message
    bench.pass_time(6.0)
    bench.ask("a")
    assert len(bench.starting) == 1


def test_a_full_queue_refuses() -> None:
    """One request more than allowed is asked to retry."""
    bench = Bench(Policy(max_waiting=2))
    bench.ask("a")
    bench.ask("a")
    error = bench.answers[bench.ask("a")]
    assert isinstance(error, Busy)
    assert error.retry_after


def test_an_expired_deadline_reports_the_load() -> None:
    """The error has the state and node of the load, which continues."""
    bench = Bench()
    waiter = bench.ask("a", timeout_s=10.0)
    (order,) = bench.starting.values()
    bench.admit(order)
    assert bench.scheduler.next_wake() == 10.0
    bench.pass_time(10.0)
    error = bench.answers[waiter]
    assert isinstance(error, ModelLoading)
    assert error.details["loading"]["state"] == "loading"
    assert error.details["loading"]["node"] == order.plan.node
    bench.become(order.instance, InstanceState.READY)
    assert not bench.scheduler.loads


def test_an_expired_deadline_reports_the_queue_position() -> None:
    """A request is second while another model's requests have waited longer."""
    bench = Bench()
    bench.ask("a")
    bench.pass_time(1.0)
    late = bench.ask("b", timeout_s=2.0)
    bench.pass_time(2.0)
    error = bench.answers[late]
    assert isinstance(error, ModelLoading)
    assert error.details["loading"]["position"] == 2


def test_the_wait_reason_is_reported() -> None:
    """A node that is expected back is named until the load starts."""
    bench = Bench()
    bench.states = dict.fromkeys(bench.states, NodeState.CONNECTING)
    bench.ask("a")
    assert "node n1 has not reported yet" in (bench.scheduler.queues.wait_reason("a") or "")
    bench.states = dict.fromkeys(bench.states, NodeState.UP)
    bench.step()
    assert bench.starting
    assert bench.scheduler.queues.wait_reason("a") is None


def test_a_refused_load_is_planned_elsewhere() -> None:
    """When another gateway's load took the memory, the next attempt goes to another node, unnoticed by the request."""
    bench = Bench()
    waiter = bench.ask("d")
    (order,) = bench.starting.values()
    other = "n2" if order.plan.node == "n1" else "n1"
    bench.instances[InstanceId("theirs")] = instance(
        "b", order.plan.node, mb=200, id=InstanceId("theirs"), state=InstanceState.LOADING
    )
    assert not bench.admit(order)
    (again,) = bench.starting.values()
    assert again.plan.node == other
    bench.admit(again)
    bench.become(again.instance, InstanceState.READY)
    assert bench.answers[waiter] == again.instance


def test_a_load_on_an_unreachable_node_is_planned_elsewhere() -> None:
    """After some seconds without its node, the load is planned on another."""
    bench = Bench()
    waiter = bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    lost = order.plan.node
    bench.states[lost] = NodeState.UNREACHABLE
    bench.pass_time(1.0)
    assert not bench.starting
    bench.pass_time(UNREACHABLE_TIMEOUT_S)
    (again,) = bench.starting.values()
    assert again.plan.node != lost
    bench.admit(again)
    bench.become(again.instance, InstanceState.READY)
    assert bench.answers[waiter] == again.instance


def test_a_lost_load_is_planned_again() -> None:
    """A load that its node stops reporting, or never reports, is planned again."""
    bench = Bench()
    bench.totals = {"n1": 300, "n2": 0}
    bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    del bench.instances[order.instance]
    bench.step()
    bench.pass_time(1.0)
    (again,) = bench.starting.values()
    del bench.starting[again.instance]
    bench.scheduler.admitted(again.instance, again.instance, bench.now)
    bench.pass_time(VISIBILITY_TIMEOUT_S + 1)
    bench.pass_time(1.0)
    assert len(bench.starting) == 1


def test_a_load_for_another_gateway_is_joined() -> None:
    """When the node answers with an instance that it was already loading, that one is waited for."""
    bench = Bench()
    waiter = bench.ask("a")
    (order,) = bench.starting.values()
    theirs = InstanceId("theirs")
    bench.scheduler.admitted(order.instance, theirs, bench.now)
    bench.step()
    assert bench.started == ["a"]
    bench.instances[theirs] = instance("a", order.plan.node, id=theirs)
    bench.step()
    assert bench.answers[waiter] == theirs


def test_an_order_lists_the_known_instances_of_its_node() -> None:
    """Only those of that node, to keep the URL short; with explicit devices no other instance will do."""
    bench = Bench()
    first = bench.load("a")
    there = bench.instances[first].node
    other = next(name for name in bench.states if name != there)
    for where in (
        PlacementConstraints(there),
        PlacementConstraints(other),
        PlacementConstraints(there, (0,)),
    ):
        bench.ask("a", key=LoadKey("a", where, replica=True))
    reasons = {
        o.plan.node: o.known_instances
        for o in bench.starting.values()
        if o.known_instances is not None
    }
    assert (first in reasons[there], first in reasons[other]) == (True, False)
    assert [o.plan.node for o in bench.starting.values() if o.known_instances is None] == [there]


def test_an_instance_that_does_not_drain_is_protected() -> None:
    """After a drain that timed out, other memory is sought and the request keeps waiting."""
    bench = Bench()
    bench.load("d")
    bench.load("d" if not bench.instances else "c")
    waiter = bench.ask("d", key=LoadKey("d", replica=True))
    bench.pass_time(6.0)
    order = bench.making.pop(next(iter(bench.making)))
    (stuck,) = order.plan.evictions
    bench.scheduler.eviction_failed(order.instance, stuck, bench.now)
    bench.step()
    assert all(stuck not in o.plan.evictions for o in bench.making.values())
    assert waiter not in bench.answers


def test_an_operators_unload_refuses_waiting_requests() -> None:
    """It also stops the load and forgets the model's failures."""
    bench = Bench()
    waiter = bench.ask("a")
    bench.scheduler.cancel_model("a")
    error = bench.answers[waiter]
    assert isinstance(error, CortexError)
    assert error.status == 409
    assert not bench.scheduler.loads


def test_a_load_admitted_after_an_unload_is_cancelled() -> None:
    """A node may take seconds to answer a load; a model unloaded meanwhile is not loaded after all."""
    bench = Bench()
    bench.ask("a")
    (order,) = bench.starting.values()
    bench.scheduler.cancel_model("a")
    assert bench.admit(order)
    assert bench.cancelled_loads == [order.instance]
    assert not bench.instances


def test_hints_quote_model_names() -> None:
    """A shell runs the command of a hint as it is, with this model."""
    name = 'Org/It\'s "one"'
    for error in (
        load_errors.impossible(name, Impossible((), no_node=False)),
        load_errors.load_failed(name, FailureRecord(1, 0.0, "no", engine_started=True), 1.0),
    ):
        assert shlex.split(error.hints[0])[-1] == name


def run_out_of_memory(bench: Bench, order: LoadOrder) -> None:
    """Have an engine run out of memory while it loads; the node removes it with the next load."""
    assert bench.admit(order)
    bench.instances[order.instance] = replace(
        bench.instances[order.instance],
        state=InstanceState.FAILED,
        vram_used_mb=0,
        vram_by_device=(0,),
        failure="out_of_memory",
        error="OOM",
    )
    bench.step()
    del bench.instances[order.instance]
    bench.pass_time(OUT_OF_MEMORY_SETTLE_S)


def test_a_load_that_ran_out_of_memory_is_tried_elsewhere_and_not_there_again():
    """The next attempt is on the other node; the client gets an answer, and no third attempt follows."""
    bench = Bench()
    waiter = bench.ask("d")
    first = next(iter(bench.starting.values()))
    run_out_of_memory(bench, first)
    second = next(iter(bench.starting.values()))
    assert second.plan.node != first.plan.node
    run_out_of_memory(bench, second)
    assert not bench.starting
    assert isinstance(bench.answers[waiter], LoadFailed)
    assert "OOM" in str(bench.answers[waiter])


def test_a_device_is_tried_again_once_it_has_more_memory_than_then():
    """An idle model is evicted for it, although its configured size would fit beside that model."""
    bench = Bench()
    bench.totals = {"n1": 300}
    idle = bench.load("a")
    bench.pass_time(100)
    waiter = bench.ask("c")
    first = next(iter(bench.starting.values()))
    assert first.plan.evictions == ()
    run_out_of_memory(bench, first)
    (second,) = bench.making.values()
    assert second.plan.evictions == (idle,)
    bench.unload(second)
    assert bench.admit(second)
    bench.become(second.instance, InstanceState.READY)
    assert bench.answers[waiter] == second.instance


def test_attempts_end_after_a_few_engines_ran_out_of_memory():
    """On a large fleet, clients do not wait until each device has been tried."""
    bench = Bench()
    bench.totals = {f"n{i}": 300 for i in range(9)}
    bench.states = dict.fromkeys(bench.totals, NodeState.UP)
    waiter = bench.ask("d")
    attempts = 0
    while bench.starting:
        run_out_of_memory(bench, next(iter(bench.starting.values())))
        attempts += 1
    assert attempts == MAX_OUT_OF_MEMORY
    assert isinstance(bench.answers[waiter], LoadFailed)


def test_nothing_is_due_for_a_request_that_has_left() -> None:
    """A request that waited for patience to end, and left, leaves no time behind at which the scheduler is due."""
    bench = Bench(Policy(patience_s=5.0))
    bench.totals = {"n1": 100, "n2": 0}
    bench.instances = {
        (busy := instance("b", mb=100, in_flight=1)).id: busy,
    }
    request = LoadRequest(1, model_config("a"), LoadKey("a"), bench.now, bench.now + 60.0)
    bench.scheduler.enqueue(request, bench.now)
    bench.step()
    assert bench.scheduler.next_wake() is not None
    bench.scheduler.cancel(1)
    bench.now += 100.0
    assert bench.scheduler.next_wake() is None
