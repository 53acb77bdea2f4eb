"""The scheduler against a fleet whose ledger is kept here: drawn histories, and the answers that matter one by one."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace

from core_worlds import NOW, device, instance, model_config, node
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cortex_common.errors import Busy, CortexError, DoesNotFit, LoadFailed, ModelLoading
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_common.schema.plans import PlanView
from cortex_server.lifecycle.views import plan_view
from cortex_server.placement import load_errors
from cortex_server.placement.capacity import ClusterCapacity, Overlay
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.failure_backoff import FailureRecord
from cortex_server.placement.fit import PlacementConstraints
from cortex_server.placement.load_queue import LoadKey, LoadRequest
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.planner import Impossible, dry_run
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import APPEARS_WITHIN_S, UNREACHABLE_FOR_S, Scheduler
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
        self.taken_back: list[InstanceId] = []
        self.instances: dict[InstanceId, InstanceView] = {}
        self.states = {"n1": NodeState.UP, "n2": NodeState.UP}
        self.totals = {"n1": 300, "n2": 300}
        self._rooms = ClusterCapacity()
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

    def make_room(self, order: LoadOrder) -> None:
        for candidate in order.plan.evictions:
            assert not self.instances[candidate].pinned
        self.making[order.instance] = order

    def start(self, order: LoadOrder) -> None:
        assert self.scheduler.waiting.count(order.model_config.id)
        self.started.append(order.model_config.id)
        self.starting[order.instance] = order

    def abandon(self, order: LoadOrder) -> None:
        del self.making[order.instance]

    def cancel_load(self, order: LoadOrder) -> None:
        self.taken_back.append(order.instance)
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

    def look(self, overlay: Overlay) -> ClusterState:
        capacities = self._rooms.of(self.snapshot(), overlay)
        return ClusterState(
            capacities=capacities, now=NOW + self.now, stats={"p": ModelStats(keep=1)}
        )

    def step(self) -> None:
        self.scheduler.step(self.look, self.now)

    def ask(self, model: str, timeout_s: float = 600.0, key: LoadKey | None = None) -> int:
        waiter = len(self.asked) + 1
        self.asked.add(waiter)
        wanted = model_config(model, SIZES[model])
        ask = LoadRequest(waiter, wanted, key or LoadKey(model), self.now, self.now + timeout_s)
        self.scheduler.ask(ask, self.now)
        self.step()
        return waiter

    def let_go(self, order: LoadOrder) -> None:
        """Let the victims of an order leave."""
        del self.making[order.instance]
        for candidate in order.plan.evictions:
            self.instances.pop(candidate, None)
        self.scheduler.room_made(order.instance, self.now)
        self.step()

    def admit(self, order: LoadOrder) -> bool:
        """Let the node answer an order by its ledger."""
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
        """Bring a model in the whole way."""
        self.ask(model)
        while self.making:
            self.let_go(next(iter(self.making.values())))
        order = next(o for o in self.starting.values() if o.model_config.id == model)
        assert self.admit(order)
        self.become(order.instance, InstanceState.READY)
        return order.instance

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.step()


class Histories(RuleBasedStateMachine):
    """Anything may happen, in any order; the promises of the scheduler hold throughout and at the end."""

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
        self.bench.let_go(self.bench.making[self._some(data, self.bench.making)])

    @precondition(lambda self: self.bench.making)
    @rule(data=st.data())
    def a_victim_does_not_drain(self, data: st.DataObject) -> None:
        order = self.bench.making.pop(self._some(data, self.bench.making))
        self.bench.scheduler.room_failed(order.instance, order.plan.evictions[0], self.bench.now)
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
        self.bench.scheduler.drop(model)
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
        assert len(self.bench.scheduler.waiting) == len(waiting)

    @invariant()
    def a_victim_belongs_to_one_order(self) -> None:
        candidates = Counter(v for o in self.bench.making.values() for v in o.plan.evictions)
        assert all(n == 1 for n in candidates.values())

    @invariant()
    def orders_and_loads_agree(self) -> None:
        known = {u.order.instance for u in self.bench.scheduler.loads}
        assert set(self.bench.making) <= known

    def teardown(self) -> None:
        """Let everything come to its end: every waiter is answered and nothing is left under way."""
        bench = self.bench
        bench.states = dict.fromkeys(bench.states, NodeState.UP)
        for _ in range(200):
            if not bench.scheduler.waiting and not bench.scheduler.loads:
                break
            for order in list(bench.making.values()):
                bench.let_go(order)
            for order in list(bench.starting.values()):
                bench.admit(order)
            for which in self._in(InstanceState.LOADING):
                bench.become(which, InstanceState.READY)
            bench.instances = {k: replace(v, in_flight=0) for k, v in bench.instances.items()}
            bench.pass_time(10.0)
        assert not bench.scheduler.waiting
        assert not bench.scheduler.loads
        assert set(bench.answered) | self.cancelled == bench.asked


TestHistories = Histories.TestCase
TestHistories.settings = settings(stateful_step_count=40)


def test_one_load_serves_all_who_wait() -> None:
    """However many ask for a model, it is loaded once, and all are answered when it is ready."""
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
    bench.let_go(next(iter(bench.making.values())))
    (second,) = bench.starting.values()
    bench.admit(second)
    bench.become(second.instance, InstanceState.READY)
    assert bench.started == ["c", "a"]
    assert [bench.answers[w] for w in waiters] == [first.instance, second.instance] * 2


def test_a_cancelled_wait_starts_no_load() -> None:
    """When the only waiter goes while room is being made, the evictions stop and the node is never asked."""
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
    """Asking and cancelling a thousand times leaves no waiter, no load beyond the one asked for, and no deadline."""
    bench = Bench()
    for _ in range(1000):
        bench.scheduler.cancel(bench.ask("a"))
    assert bench.started == ["a"]
    assert not bench.scheduler.waiting
    assert bench.scheduler.next_wake() is None


def test_what_can_not_fit_is_refused_at_once() -> None:
    """A model larger than every device is refused with the numbers, and nobody is evicted for it."""
    bench = Bench()
    bench.load("d")
    waiter = bench.ask("huge")
    error = bench.answers[waiter]
    assert isinstance(error, DoesNotFit)
    assert error.details["refusals"][0]["missing_mb"] == 9999 - 50
    assert not bench.making


def test_a_failed_load_tells_everybody_why_and_backs_off() -> None:
    """The engine's reason reaches each waiter; who asks again too soon is refused without a load, ever longer."""
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
    """Ask for a model, let the engine of its load fail, and wait until it may be tried again; the node's name."""
    waiter = bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    bench.become(order.instance, InstanceState.FAILED)
    error = bench.answers[waiter]
    assert isinstance(error, LoadFailed)
    bench.pass_time(error.retry_after or 0.0)
    return order.plan.node


def test_after_a_crash_another_node_is_tried() -> None:
    """One host's driver may be broken; the next has room, and its engine may be sound. Then all have had their turn."""
    bench = Bench()
    assert [crash(bench) for _ in range(3)] == ["n1", "n2", "n1"]


def foreseen(bench: Bench, *, force: bool = False) -> PlanView:
    """What a plan for model a says now."""
    request, cluster = (
        PlacementRequest(model_config("a", SIZES["a"])),
        bench.look(bench.scheduler.overlay()),
    )
    failures = bench.scheduler.failures
    found = dry_run(request, cluster, bench.scheduler.policy, failures, bench.now, force=force)
    return plan_view(request, found, cluster, Policy(), failures.told("a", bench.now))


def test_a_plan_knows_of_a_crash_what_the_load_knows() -> None:
    """For a request another node is planned, as is then tried; for an operator, who is forgiven it, the same again."""
    bench = Bench()
    crashed = crash(bench)
    for_request, for_operator = foreseen(bench), foreseen(bench, force=True)
    assert for_operator.node == crashed
    assert for_operator.why.endswith("; but an engine of it failed there lately")
    (line,) = [line for line in for_request.ledger if line.node == crashed]
    assert (line.reason or "").endswith("; an engine of it failed there lately")
    assert crash(bench) == for_request.node != crashed


def test_a_plan_right_after_a_crash_is_to_wait_for_all_but_operators() -> None:
    """A request would be refused, and nothing be loaded for it, until the pause is over."""
    bench = Bench(Policy(backoff_s=5.0))
    bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    bench.become(order.instance, InstanceState.FAILED)
    assert foreseen(bench).action == "wait"
    assert foreseen(bench, force=True).action == "load"


def test_a_plan_leaves_a_node_alone_that_has_just_refused() -> None:
    """For operators, too: the load goes elsewhere, and where there is no other node it waits."""
    bench = Bench()
    bench.ask("a")
    refused = []
    for _ in range(2):
        (order,) = bench.starting.values()
        del bench.starting[order.instance]
        bench.scheduler.refused(order.instance, bench.now)
        refused.append(order.plan.node)
        planned = foreseen(bench, force=True)
        assert planned.node not in refused
        bench.step()
    assert planned.action == "wait"
    assert "n1, n2 refused or lost it" in planned.why


def test_after_a_crash_nobody_has_to_go_for_a_try_elsewhere() -> None:
    """It may well be the model's own fault, which would cost every host what it has loaded."""
    bench = Bench()
    taken = bench.instances[bench.load("d")].node
    assert taken not in {crash(bench) for _ in range(2)}


def cannot(bench: Bench, reason: str) -> str:
    """Let the node of the one order that was started say that it can't begin; its name."""
    (order,) = bench.starting.values()
    del bench.starting[order.instance]
    node = order.plan.node
    bench.scheduler.failed(order.instance, f"node {node} refused: {reason}", bench.now)
    bench.step()
    return node


def test_what_one_node_can_not_begin_is_loaded_on_another() -> None:
    """Weights may lie on one host alone; who waits hears nothing of those that lack them."""
    bench = Bench()
    waiter = bench.ask("a")
    first = cannot(bench, "no such file")
    (order,) = bench.starting.values()
    assert order.plan.node != first
    bench.admit(order)
    bench.become(order.instance, InstanceState.READY)
    assert bench.answers[waiter] == order.instance


def test_what_no_node_can_begin_fails_by_all_their_reasons_and_is_tried_anew_later() -> None:
    """Once the pause is over, every node is asked again: somebody may have put there what they lacked."""
    bench = Bench(Policy(backoff_s=5.0))
    waiter = bench.ask("a")
    names = {cannot(bench, "no such file"), cannot(bench, "no program")}
    assert names == {"n1", "n2"}
    error = bench.answers[waiter]
    assert isinstance(error, LoadFailed)
    assert "no such file" in error.message
    assert "no program" in error.message
    bench.pass_time(6.0)
    bench.ask("a")
    assert len(bench.starting) == 1


def test_the_bound_of_a_queue_holds() -> None:
    """One waiter more than allowed is told to come back."""
    bench = Bench(Policy(max_waiting=2))
    bench.ask("a")
    bench.ask("a")
    error = bench.answers[bench.ask("a")]
    assert isinstance(error, Busy)
    assert error.retry_after


def test_a_deadline_is_kept_and_says_where_the_load_is() -> None:
    """Who waits too long is told the state and node of the load, which goes on."""
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


def test_a_deadline_tells_the_place_in_the_queue() -> None:
    """Who gives up while another model's requests have waited longer is second."""
    bench = Bench()
    bench.ask("a")
    bench.pass_time(1.0)
    late = bench.ask("b", timeout_s=2.0)
    bench.pass_time(2.0)
    error = bench.answers[late]
    assert isinstance(error, ModelLoading)
    assert error.details["loading"]["position"] == 2


def test_who_waits_can_be_told_what_for() -> None:
    """A node that is expected back is named, and no more once the load has begun."""
    bench = Bench()
    bench.states = dict.fromkeys(bench.states, NodeState.CONNECTING)
    bench.ask("a")
    assert "node n1 has not answered yet" in (bench.scheduler.waiting.why("a") or "")
    bench.states = dict.fromkeys(bench.states, NodeState.UP)
    bench.step()
    assert bench.starting
    assert bench.scheduler.waiting.why("a") is None


def test_a_refusal_is_planned_anew_elsewhere() -> None:
    """When another gateway's load took the room, the next try goes to another node, and the waiter notices nothing."""
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


def test_a_node_that_vanishes_during_a_load_is_given_up() -> None:
    """After some seconds without its node the load is planned on another."""
    bench = Bench()
    waiter = bench.ask("a")
    (order,) = bench.starting.values()
    bench.admit(order)
    lost = order.plan.node
    bench.states[lost] = NodeState.UNREACHABLE
    bench.pass_time(1.0)
    assert not bench.starting
    bench.pass_time(UNREACHABLE_FOR_S)
    (again,) = bench.starting.values()
    assert again.plan.node != lost
    bench.admit(again)
    bench.become(again.instance, InstanceState.READY)
    assert bench.answers[waiter] == again.instance


def test_a_neuron_that_forgot_a_load_is_asked_anew() -> None:
    """A load that its node stops showing, or never shows, is planned anew."""
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
    bench.pass_time(APPEARS_WITHIN_S + 1)
    bench.pass_time(1.0)
    assert len(bench.starting) == 1


def test_work_begun_for_another_gateway_is_followed() -> None:
    """When the node answers with an instance that it had begun already, that one is waited for."""
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


def test_a_load_says_which_copies_its_node_had() -> None:
    """Only those of that node, whose list would else outgrow a URL; on named devices no other copy will do."""
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
    told = {o.plan.node: o.known for o in bench.starting.values() if o.known is not None}
    assert (first in told[there], first in told[other]) == (True, False)
    assert [o.plan.node for o in bench.starting.values() if o.known is None] == [there]


def test_a_victim_that_does_not_drain_is_spared() -> None:
    """After a drain that did not end, other room is looked for, and the waiter stays."""
    bench = Bench()
    bench.load("d")
    bench.load("d" if not bench.instances else "c")
    waiter = bench.ask("d", key=LoadKey("d", replica=True))
    bench.pass_time(6.0)
    order = bench.making.pop(next(iter(bench.making)))
    (stuck,) = order.plan.evictions
    bench.scheduler.room_failed(order.instance, stuck, bench.now)
    bench.step()
    assert all(stuck not in o.plan.evictions for o in bench.making.values())
    assert waiter not in bench.answers


def test_an_unload_by_an_operator_answers_who_waits() -> None:
    """Unloading a model tells its waiters so, stops its load, and forgets its failures."""
    bench = Bench()
    waiter = bench.ask("a")
    bench.scheduler.drop("a")
    error = bench.answers[waiter]
    assert isinstance(error, CortexError)
    assert error.status == 409
    assert not bench.scheduler.loads


def test_what_a_node_begins_after_an_unload_is_taken_back() -> None:
    """A node may take seconds to answer a load; unloaded meanwhile, the model does not come all the same."""
    bench = Bench()
    bench.ask("a")
    (order,) = bench.starting.values()
    bench.scheduler.drop("a")
    assert bench.admit(order)
    assert bench.taken_back == [order.instance]
    assert not bench.instances


def test_a_hint_can_be_pasted_whatever_a_model_is_called() -> None:
    """A shell takes the command of a hint as it stands, and means this model."""
    name = 'Org/It\'s "one"'
    for error in (
        load_errors.impossible(name, Impossible((), no_node=False)),
        load_errors.load_failed(name, FailureRecord(1, 0.0, "no", started=True), 1.0),
    ):
        assert shlex.split(error.hints[0])[-1] == name
