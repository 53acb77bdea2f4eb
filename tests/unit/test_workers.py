"""What workers share: the board, the doors with their queue, the table, the wire; and when the dead are replaced."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_common.clock import SystemClock
from cortex_common.config.access import KeyLimits, KeyTerms, LimitsSection
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig, NeuronEntry
from cortex_common.errors import DoesNotFit, RateLimited
from cortex_common.schema.hardware import Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.auth.keys import Key, MadeKey, hash_of
from cortex_server.auth.usage import Usage
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.access_log import AccessLog, RequestLine
from cortex_server.workers.backoff import LONGEST_S, STEADY_S, Backoff
from cortex_server.workers.board import INSIDE, ROWS, Board
from cortex_server.workers.books import Books, changes
from cortex_server.workers.limits import SharedDoors, SharedGate
from cortex_server.workers.queue import Queued, SharedQueue
from cortex_server.workers.reports import Homes
from cortex_server.workers.rows import Rows
from cortex_server.workers.table import SharedTarget, Table
from cortex_server.workers.wire import (
    Channel,
    Ended,
    Failure,
    PlaceFree,
    Queue,
    Report,
    Spec,
    State,
    ToControl,
    ToWorker,
    Unqueue,
    Verdict,
)

WORKERS = 2
ANYBODY = Key("anybody", "", KeyTerms())


@pytest.fixture
def boards():
    """The control process's board, and each worker's view of the same memory."""
    control = Board.make(WORKERS)
    views = [Board(os.dup(control.descriptor), WORKERS, column) for column in range(WORKERS)]
    yield control, *views
    for board in (*views, control):
        board.close()


def test_a_board_needs_no_memfd(monkeypatch):
    """A Python built for older systems has none, as uv's; the memory is shared all the same."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    control = Board.make(WORKERS)
    view = Board(os.dup(control.descriptor), WORKERS, 0)
    view.put(3, 7)
    assert control.sum(3) == 7
    view.close()
    control.close()


class Line:
    """A channel whose messages a test carries by hand."""

    def __init__(self) -> None:
        self.said: list = []

    def send(self, message: object) -> None:
        """Keep it."""
        self.said.append(message)


class Guest:
    """A request at the doors."""

    def __init__(self) -> None:
        self.became = ""

    def admitted(self) -> None:
        """It is its turn."""
        self.became = "admitted"

    def turned_away(self) -> None:
        """It has waited for as long as it may."""
        self.became = "turned away"


class Doors:
    """Two workers' doors and the control process's queue, with the messages between them."""

    def __init__(self, boards, limits: LimitsSection) -> None:
        control, *views = boards
        self.queue = SharedQueue(asyncio.get_running_loop(), limits, control)
        self.lines = [Line() for _ in views]
        self.doors = [SharedDoors(b, x, limits) for b, x in zip(views, self.lines, strict=True)]
        self.down = [Line() for _ in views]
        self._queued: dict = {}

    async def settle(self) -> None:
        """Carry messages until none is left."""
        for _ in range(20):
            await asyncio.sleep(0)
            for at, line in enumerate(self.lines):
                while line.said:
                    self._control(at, line.said.pop(0))
            for at, line in enumerate(self.down):
                while line.said:
                    told = line.said.pop(0)
                    self.doors[at].called(told.ask, go=told.go)

    def _control(self, at: int, message) -> None:
        if isinstance(message, Queue):
            guest = self._queued[at, message.ask] = Queued(message.ask, self.down[at])
            self.queue.join(guest, ANYBODY, message.priority)
        elif isinstance(message, Unqueue):
            self.queue.leave(self._queued.pop((at, message.ask)))
        else:
            assert isinstance(message, PlaceFree)
            self.queue.look()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=60), st.integers(1, 5))
def test_a_row_never_stands_above_its_limit(steps, most):
    """Whatever two workers take and give back, the sum is what they hold, and never more than the limit."""
    control = Board.make(WORKERS)
    views = [Board(os.dup(control.descriptor), WORKERS, column) for column in range(WORKERS)]
    held = [0, 0]
    for worker, take in steps:
        if take:
            held[worker] += views[worker].take(7, most)
        elif held[worker]:
            views[worker].add(7, -1)
            held[worker] -= 1
        assert control.sum(7) == sum(held) <= most
    control.wipe(0)
    assert control.sum(7) == held[1]
    for board in (*views, control):
        board.close()


def test_flows_are_one_allowance_for_all(boards):
    """What one worker took of a minute's requests the other lacks; another size begins anew."""
    _, first, second = boards
    for board in (first, second, first):
        with board.flows(3, 3, None, lambda: 100.0) as flows:
            assert flows.tokens is None
            assert flows.requests.wait(1.0, 100.0) == 0
            flows.requests.take(1.0)
    with second.flows(3, 3, None, lambda: 100.0) as flows:
        assert flows.requests.wait(1.0, 100.0) == pytest.approx(20.0)
        assert flows.requests.wait(1.0, 120.0) == 0
    with second.flows(3, 6, None, lambda: 100.0) as flows:
        assert flows.requests.wait(6.0, 100.0) == 0


def test_a_key_is_limited_over_both_workers(boards):
    """In flight and a minute's requests are counted together; what was refused is not counted."""
    control, *views = boards
    rows = Rows(control).of(["few"])
    limits = KeyLimits(max_in_flight=2, requests_per_minute=3)
    gates = [SharedGate(view) for view in views]
    headers = [(b"authorization", b"Bearer s")]
    for access_control in gates:
        access_control.use_rows(rows)
        made = MadeKey("few", hash_of("s"), KeyTerms(limits=limits), 0.0)
        access_control.keyring.use((), [made], 0.0)
    key = gates[0].enter(headers, own=False)
    gates[1].enter(headers, own=False)
    with pytest.raises(RateLimited, match="2 requests under way"):
        gates[1].enter(headers, own=False)
    gates[0].leave(key, "m", 0, 0, failed=False)
    gates[1].enter(headers, own=False)
    gates[1].leave(key, "m", 0, 0, failed=False)
    with pytest.raises(RateLimited, match="3 requests a minute"):
        gates[0].enter(headers, own=False)
    assert control.sum(rows["few"]) == 1


def test_rows_are_kept_by_name_and_come_back_when_all_are_used(boards):
    """A key made anew finds its row again; rows of revoked idle keys are used for others in the end."""
    control, first, _ = boards
    rows = Rows(control)
    names = [f"k{n}" for n in range(ROWS - 2)]
    given = rows.of(names)
    assert len(set(given.values()) | {INSIDE, ROWS - 1}) == ROWS
    first.add(given["k1"], 1)
    after = rows.of(["k2", "new", "newer"])
    assert after["k2"] == given["k2"]
    assert given["k1"] not in after.values()
    assert ROWS - 1 not in after.values()


async def test_whoever_finds_no_place_waits_in_one_queue_over_both_workers(boards):
    """Places that one worker's requests leave go to whoever came first, at the other worker too."""
    it = Doors(boards, LimitsSection(max_in_flight=2, max_queued=2))
    first, second, third, fourth, fifth = (Guest() for _ in range(5))
    one, two = it.doors
    assert one.enter(first, ANYBODY, 0)
    assert one.enter(second, ANYBODY, 0)
    assert not two.enter(third, ANYBODY, 0)
    await it.settle()
    assert not one.enter(fourth, ANYBODY, 0)
    assert not one.enter(fifth, ANYBODY, 0)
    await it.settle()
    assert [g.became for g in (third, fourth, fifth)] == ["", "", "turned away"]
    one.leave(first)
    await it.settle()
    assert [g.became for g in (third, fourth)] == ["admitted", ""]
    one.leave(fourth)
    await it.settle()
    one.leave(second)
    two.leave(third)
    await it.settle()
    assert fourth.became == ""
    assert boards[0].sum(INSIDE) == boards[0].queued == it.queue.waiting == 0
    assert two.enter(Guest(), ANYBODY, 0)


async def test_a_place_given_to_somebody_who_has_left_goes_to_the_next(boards):
    """A guest whose client leaves as its turn comes leaves nothing behind."""
    it = Doors(boards, LimitsSection(max_in_flight=1))
    first, second, third = Guest(), Guest(), Guest()
    one, two = it.doors
    assert one.enter(first, ANYBODY, 0)
    two.enter(second, ANYBODY, 0)
    two.enter(third, ANYBODY, 0)
    await it.settle()
    one.leave(first)
    two.leave(second)
    await it.settle()
    assert (second.became, third.became) == ("", "admitted")
    two.leave(third)
    await it.settle()
    assert boards[0].sum(INSIDE) == 0


def spec(number: int, *, usable: bool = True, trial: bool = False, suspect: bool = False) -> Spec:
    """A row of model m."""
    return Spec(
        number=number,
        id=f"m-{number}",
        model="m",
        node="n",
        url="http://127.0.0.1:1",
        slots=4,
        engine="scripted",
        context=None,
        served_as="m",
        retries=True,
        overflow=False,
        usable=usable,
        trial=trial,
        suspect=suspect,
    )


def test_a_table_counts_its_own_and_knows_of_others():
    """Requests on a target survive a change of its row; what is taken out takes no new ones, and is known by name."""
    line = Line()
    table = Table(line, Metrics())
    table.use({"m": (spec(1), spec(2))})
    target = table.ready("m")[0]
    assert isinstance(target, SharedTarget)
    table.acquire(target)
    table.use_busy({1: 3})
    assert (target.in_flight, target.mine) == (4, 1)
    table.use({"m": (spec(1, usable=False), spec(2))})
    assert [t.id for t in table.ready("m")] == ["m-2"]
    table.release(target)
    assert (target.in_flight, target.mine, target.most) == (3, 0, 1)
    table.use({"m": (spec(1, usable=False),)})
    assert (table.known("m"), table.ready("m")) == ("m", [])
    assert table.unknown("mm").hints[0] == "did you mean 'm'?"
    table.use({"m": ()})
    assert table.known("m") is None


def test_a_worker_sends_one_request_to_an_instance_on_trial_and_tells_how_it_went():
    """Others are kept away meanwhile; one that ended without a verdict leaves the trial to the next."""
    line = Line()
    table = Table(line, Metrics())
    table.use({"m": (spec(1, trial=True, suspect=True),)})
    (target,) = table.ready("m")
    table.acquire(target)
    assert table.ready("m") == []
    table.release(target)
    table.untried(target)
    assert table.ready("m") == [target]
    table.answered(target)
    table.answered(target)
    table.failed(target, "broken")
    assert line.said == [Verdict(1, None), Verdict(1, "broken")]


async def test_books_sum_what_workers_have_and_a_drain_waits_for_all_of_them():
    """An instance is idle once every worker knows that it drains and the last request of any has ended or is lost.

    Those that are lost are counted as errors.
    """
    metrics = Metrics()
    node = NeuronEntry(name="n", endpoint="http://127.0.0.1:1")
    fleet = Fleet((node,), Catalogue(), SystemClock(), metrics)
    agreed = asyncio.Event()
    fleet.routed_by(agreed.wait)
    instances = tuple(
        ModelInfo(
            id=ModelId("m"),
            harness="scripted",
            status=InstanceState.READY,
            instance_id=InstanceId(name),
            url="http://127.0.0.1:2",
        )
        for name in ("m-0", "m-1")
    )
    fleet.reported("n", NodeStatus(health=Health(uptime_secs=1), models=instances))
    books = Books(fleet, metrics, Usage(), AccessLog(asyncio.get_running_loop()))
    number = books.table()["m"][0].number
    books.flights(0, [(number, 2, 2)])
    books.flights(1, [(number, 1, 4)])
    assert [i.in_flight for i in fleet.snapshot.instances()] == [3, 0]
    assert books.elsewhere(0, [number]) == {number: 1}
    assert number in books.with_others()
    fleet.set_draining(InstanceId("m-0"), draining=True)
    assert [row.usable for row in books.table()["m"]] == [False, True]
    waiting = asyncio.create_task(fleet.when_idle(InstanceId("m-0")))
    books.flights(1, [(number, 0, 1)])
    assert books.lost(0) == {number}
    assert metrics.series("m", "n").errors == {"worker_died": 2}
    assert metrics.series("m", "n").requests == 2
    await asyncio.sleep(0)
    assert not waiting.done()
    agreed.set()
    await waiting
    assert [i.in_flight for i in fleet.snapshot.instances()] == [0, 0]


def test_only_models_that_differ_are_told():
    """A model without rows is told as empty."""
    before = {"a": (spec(1),), "b": (spec(2),)}
    now = {"b": (spec(2),), "c": (spec(3),)}
    assert changes(before, now) == {"a": (), "c": (spec(3),)}
    assert changes(now, now) == {}


def test_a_session_that_moves_is_told_once():
    """What was heard from others is not told again."""
    homes = Homes()
    homes.heard({1: "m-1"})
    homes.remember((1,), InstanceId("m-1"))
    assert homes.new == {}
    homes.remember((1,), InstanceId("m-2"))
    assert homes.new == {1: "m-2"}
    assert homes.matches((1,), [InstanceId("m-2")]) == {0: 1.0}


class Pipe(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes) -> None:
        """Part of asyncio.Transport."""
        self.written += data

    def is_closing(self) -> bool:
        """Part of asyncio.Transport."""
        return False


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40))
def test_messages_come_whole_however_the_stream_is_cut(size):
    """All kinds of content survive the wire, in their order."""
    line = RequestLine(
        ts=datetime.now(UTC),
        level="info",
        event="request_finished",
        logger="cortex.requests",
        request="r",
        route="/v1",
        outcome="ok",
        total_latency_ms=1.5,
    )
    ended = Ended(line, 3, 0.5, None, 0.0, 0, "h", {"tail": 2})
    sent: list[ToControl] = [
        Report(((1, 2, 3),), (ended,), {-5: "m-1"}, 4),
        Verdict(1, None),
        Queue(7, "k", 2),
    ]
    pipe, heard = Pipe(), []
    worker: Channel = Channel(ToWorker, heard.append, lambda: None)
    worker.connection_made(pipe)
    for message in sent:
        worker.send(message)
    control: Channel = Channel(ToControl, heard.append, lambda: None)
    for start in range(0, len(pipe.written), size):
        control.data_received(pipe.written[start : start + size])
    assert heard == sent


def test_an_error_travels_whole():
    """Kind, words, hints, numbers and the time to come back are the same at the other end."""
    error = DoesNotFit("too large", hints=("buy", "more"), details={"devices": [{"free_mb": 1}]})
    error.retry_after = 2.5
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(Failure.of(error)), type=Failure)
    again = state.error
    assert type(again) is DoesNotFit
    assert vars(again) == vars(error)


def test_settings_travel_whole():
    """A worker works by the same configuration as the control process read."""
    config = GatewayConfig.model_validate(
        {
            "gateway": {"listen": "[::]:1", "workers": 3, "state_dir": "/x"},
            "eviction": {"idle_ttl": "5m"},
            "keys": [{"name": "k", "hash": hash_of("k"), "expires": "2030-01-01"}],
            "neurons": [{"name": "n", "endpoint": "http://n:1", "token_file": "/t"}],
            "upstreams": [{"name": "u", "base_url": "https://u/v1", "key": "s"}],
        }
    )
    assert GatewayConfig.model_validate_json(config.model_dump_json()) == config
    catalogue = Catalogue.model_validate(
        {"models": [{"id": "m", "harness": "h", "ttl": "1h", "params": {"defaults": {"top_k": 5}}}]}
    )
    assert (
        Catalogue.model_validate_json(catalogue.model_dump_json(exclude_defaults=True)) == catalogue
    )
    state = State(1, {"m": (spec(1),)})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State) == state


def test_the_first_death_is_mended_at_once_and_further_ones_later_and_later():
    """A worker that lived for long begins anew."""
    backoff = Backoff()
    pauses = [backoff.died(1.0) for _ in range(9)]
    assert pauses[:3] == [0.0, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_S
    assert backoff.died(STEADY_S) == 0.0
