"""The executor against nodes that refuse or answer unexpectedly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
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
from cortex_server.placement.plans import Load

VICTIMS = (InstanceId("first"), InstanceId("second"))
ORDER = LoadOrder(
    InstanceId("new"),
    ModelConfig(id="wanted", harness="fake"),
    Load("n1", (0,), Shape(DeviceKind.CUDA, 1, Size(100, SizeSource.CONFIGURED)), VICTIMS, "why"),
)

Answer = Callable[[httpx.Request], httpx.Response]


@dataclass
class RecordedEvents:
    """The recorded events of an executor."""

    events: list[tuple[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def _hear(self, what: str, about: str) -> None:
        self.events.append((what, about))
        self.over.set()

    def evicted(self, instance: InstanceId) -> None:
        self._hear("room_made", instance)

    def eviction_failed(self, instance: InstanceId, stuck: InstanceId) -> None:
        self._hear("room_failed", stuck)

    def removed(self, instance: InstanceId) -> None:
        self.events.append(("left", instance))

    def admitted(self, instance: InstanceId, actual: InstanceId) -> None:
        self._hear("admitted", actual)

    def refused(self, order: LoadOrder, needed_mb: int | None) -> None:
        self._hear("refused", str(needed_mb))

    def failed(self, instance: InstanceId, reason: str) -> None:
        self._hear("failed", reason)


def fleet_with_candidates() -> Fleet:
    """Return a node with two ready instances."""
    entry = NeuronEntry(name="n1", endpoint="http://n1")
    fleet = Fleet((entry,), Catalogue(), SystemClock(), Metrics())
    infos = tuple(
        ModelInfo(
            id=ModelId(name),
            harness="fake",
            status=InstanceState.READY,
            instance_id=name,
            url="http://n1:8001",
        )
        for name in VICTIMS
    )
    fleet.update_status("n1", NodeStatus(health=Health(uptime_secs=1.0), models=infos))
    return fleet


class Body(httpx.AsyncByteStream):
    """A body that arrives in one piece."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


async def execute(answer: Answer, *, load: bool = False) -> tuple[Fleet, RecordedEvents]:
    """Evict for an order, or start its load, on a node that answers so."""
    fleet, heard = fleet_with_candidates(), RecordedEvents()
    transport = httpx.MockTransport(lambda request: streamed(answer(request)))
    async with NeuronClient("http://n1", who="node n1", transport=transport) as client:
        executor = Executor(fleet, {"n1": client}, heard)
        if load:
            executor.start_load(ORDER)
        else:
            executor.evict(ORDER, 5.0)
        async with asyncio.timeout(5):
            await heard.over.wait()
        await executor.close()
    return fleet, heard


def streamed(response: httpx.Response) -> httpx.Response:
    """Return a response whose body has not been read yet, as one that arrives over a connection."""
    return httpx.Response(
        response.status_code, headers=response.headers, stream=Body(response.content)
    )


def accepting(fleet: Fleet) -> list[str]:
    """Return the candidates that take requests."""
    return [name for name in VICTIMS if fleet.ready(name)]


def answers_error(error: CortexError) -> Answer:
    """Return a node that answers everything with an error."""
    return lambda _: httpx.Response(error.status, json=envelope(error))


async def test_all_candidates_serve_again_when_one_cannot_be_unloaded() -> None:
    """When the node refuses to unload the first of two drained instances, both take requests again."""
    fleet, heard = await execute(answers_error(CortexError("no")))
    assert heard.events == [("room_failed", "first")]
    assert accepting(fleet) == ["first", "second"]


async def test_an_instance_used_by_others_is_not_evicted() -> None:
    """An eviction asks the node not to cut requests, and names the instance that is still in use."""
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        if asked[-1]["instance_id"] == "first":
            return httpx.Response(200, json={"status": "unloaded"})
        return answers_error(InstanceBusy.after_drain("second", 5.0))(request)

    fleet, heard = await execute(answer)
    assert [a["force"] for a in asked] == [False, False]
    assert heard.events == [("left", "first"), ("room_failed", "second")]
    assert accepting(fleet) == ["second"]


async def test_unexpected_errors_are_reported() -> None:
    """A defect during an eviction or a load is reported, so that no load is pending forever."""

    def broken(_: httpx.Request) -> httpx.Response:
        raise RuntimeError("a defect")

    fleet, heard = await execute(broken)
    assert heard.events == [("room_failed", "first")]
    assert accepting(fleet) == ["first", "second"]
    _, heard = await execute(broken, load=True)
    assert heard.events == [("failed", "internal error of the gateway; see its log")]


async def test_a_failed_load_names_its_node() -> None:
    """Another node may have what one lacks: the reason names the node."""
    _, heard = await execute(
        answers_error(BadRequest("there is no file x on this node")), load=True
    )
    assert heard.events == [("failed", "node n1 refused: there is no file x on this node")]
