"""The carrier against nodes that refuse, and that answer what nobody expected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import NeuronEntry
from cortex_common.errors import BadRequest, CortexError, InstanceBusy, envelope
from cortex_common.schema.hardware import DeviceKind, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.executor import Executor
from cortex_server.metrics.series import Metrics
from cortex_server.placement.fit import Shape, Size, SizeSource
from cortex_server.placement.pending_loads import LoadOrder
from cortex_server.placement.planner import Load

VICTIMS = (InstanceId("first"), InstanceId("second"))
ORDER = LoadOrder(
    InstanceId("new"),
    ModelConfig(id="wanted", harness="fake"),
    Load("n1", (0,), Shape(DeviceKind.CUDA, 1, Size(100, SizeSource.CONFIGURED)), VICTIMS, "why"),
)

Answer = Callable[[httpx.Request], httpx.Response]


@dataclass
class Heard:
    """The reports of a carrier."""

    told: list[tuple[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def _hear(self, what: str, about: str) -> None:
        self.told.append((what, about))
        self.over.set()

    def room_made(self, instance: InstanceId) -> None:
        self._hear("room_made", instance)

    def room_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        self._hear("room_failed", stuck)

    def left(self, instance: InstanceId) -> None:
        self.told.append(("left", instance))

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        self._hear("admitted", actual)

    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        self._hear("refused", str(needed_mb))

    def failed(self, instance: InstanceId, reason: str) -> None:
        self._hear("failed", reason)


def fleet_with_victims() -> Fleet:
    """A node with two ready instances."""
    entry = NeuronEntry(name="n1", endpoint="http://n1")
    fleet = Fleet((entry,), Catalogue(), SystemClock(), Metrics())
    infos = tuple(
        ModelInfo(
            id=ModelId(name),
            harness="fake",
            status=InstanceState.READY,
            instance_id=name,
            url=f"http://{name}",
        )
        for name in VICTIMS
    )
    fleet.reported("n1", NodeStatus(health=Health(uptime_secs=1.0), models=infos))
    return fleet


async def carried(answer: Answer, *, load: bool = False) -> tuple[Fleet, Heard]:
    """Have the order's room made, or its load started, on a node that answers so."""
    fleet, heard = fleet_with_victims(), Heard()
    transport = httpx.MockTransport(answer)
    async with NeuronClient("http://n1", who="node n1", transport=transport) as client:
        executor = Executor(fleet, {"n1": client}, heard)
        if load:
            executor.start(ORDER)
        else:
            executor.make_room(ORDER, 5.0)
        async with asyncio.timeout(5):
            await heard.over.wait()
        await executor.close()
    return fleet, heard


def taking(fleet: Fleet) -> list[str]:
    """Which of the victims take requests."""
    return [name for name in VICTIMS if fleet.ready(name)]


def says(error: CortexError) -> Answer:
    """A node that answers everything with an error."""
    return lambda _: httpx.Response(error.status, json=envelope(error))


async def test_all_victims_serve_again_when_one_will_not_go() -> None:
    """When the node refuses to end the first of two drained victims, both take requests again."""
    fleet, heard = await carried(says(CortexError("no")))
    assert heard.told == [("room_failed", "first")]
    assert taking(fleet) == ["first", "second"]


async def test_a_victim_that_others_use_is_spared() -> None:
    """An eviction asks the node not to cut anybody, and names the instance that is still in use."""
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        if asked[-1]["instance_id"] == "first":
            return httpx.Response(200, json={"status": "unloaded"})
        return says(InstanceBusy.after_drain("second", 5.0))(request)

    fleet, heard = await carried(answer)
    assert [a["cut"] for a in asked] == [False, False]
    assert heard.told == [("left", "first"), ("room_failed", "second")]
    assert taking(fleet) == ["second"]


async def test_what_nobody_expected_leaves_no_load_waiting() -> None:
    """A defect while room is made or a load is asked for is reported, so that no load is under way for ever."""

    def broken(_: httpx.Request) -> httpx.Response:
        raise RuntimeError("a defect")

    fleet, heard = await carried(broken)
    assert heard.told == [("room_failed", "first")]
    assert taking(fleet) == ["first", "second"]
    _, heard = await carried(broken, load=True)
    assert heard.told == [("failed", "the gateway failed; its log says how")]


async def test_who_waits_is_told_which_node_would_not_load() -> None:
    """What a node lacks, another may have: the reason names the node."""
    _, heard = await carried(says(BadRequest("there is no file x on this node")), load=True)
    assert heard.told == [("failed", "node n1 refused: there is no file x on this node")]
