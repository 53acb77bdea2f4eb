"""Two gateways that share a neuron never overcommit it, and neither cuts the other's streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lifecycle_kit import (
    MODEL_MB,
    Served,
    gateway,
    neuron,
    port_of_a_node_that_is_off,
    tiny,
    until,
)

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.operations import (
    LoadModelRequest,
    NodeRequest,
    PinModelRequest,
    UnpinModelRequest,
)

ROOM_MB = 2 * MODEL_MB + 8
EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"drain_timeout": 30, "min_residency": 0}}


def view(served: Served, model: str) -> InstanceView | None:
    """Return a model's instance as a gateway sees it."""
    found = (i for i in served.gateway.fleet.snapshot.instances() if i.model == model)
    return next(found, None)


def last_used(served: Served, model: str) -> float:
    """When a model was used last, as a gateway sees it."""
    found = view(served, model)
    return 0.0 if found is None else found.last_used


def cordoned(served: Served) -> list[bool]:
    """Whether each node is cordoned, as a gateway sees it."""
    return [node.cordoned for node in served.gateway.fleet.snapshot.nodes]


def reasons(served: Served) -> list[str | None]:
    """Why nodes are not up."""
    return [node.reason for node in served.gateway.fleet.snapshot.nodes]


async def ask(served: Served, model: str, tokens: int) -> str:
    """Return the complete text of a streamed response."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = await served.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.text


def is_whole(text: str) -> bool:
    """Return whether a stream has usage, an end and no error."""
    return text.rstrip().endswith("data: [DONE]") and '"usage":{' in text and '"error"' not in text


async def test_an_idle_model_is_evicted_before_one_that_another_gateway_uses(
    tmp_path: Path,
) -> None:
    """A gateway evicts the idle model, although its own last request for the busy one was earlier."""
    models = tuple(tiny(tmp_path, name) for name in ("busy", "idle", "new"))
    async with (
        neuron(tmp_path, ROOM_MB) as node,
        gateway({"here": node.url}, models, **EAGER) as one,
        gateway({"here": node.url}, models, **EAGER) as other,
    ):
        await one.chat("busy")
        await one.chat("idle")
        over = asyncio.Event()

        async def keep_busy() -> None:
            while not over.is_set():
                assert is_whole(await ask(other, "busy", 60))

        clients = [asyncio.create_task(keep_busy()) for _ in range(2)]
        await until(lambda: (v := view(one, "busy")) is not None and v.in_flight > 0)
        assert is_whole(await ask(one, "new", 3))
        over.set()
        await asyncio.gather(*clients)
        held = {i.id for i in node.runtime.models(lambda _: "http://127.0.0.1:1")}
        assert {i.spec.model_id for i in node.runtime.instances.snapshots} == {"busy", "new"}
        assert len(held) == 2


async def test_two_gateways_load_a_model_once(tmp_path: Path) -> None:
    """The second gateway joins the load of the first and gets its response from that instance."""
    models = (tiny(tmp_path, "cold"),)
    async with (
        neuron(tmp_path, ROOM_MB) as node,
        gateway({"here": node.url}, models) as one,
        gateway({"here": node.url}, models) as other,
    ):
        await asyncio.gather(one.chat("cold"), other.chat("cold"))
        assert len(node.runtime.instances.snapshots) == 1


async def test_what_another_gateway_used_last_is_not_evicted(tmp_path: Path) -> None:
    """The least recently used model goes, whichever gateway used the others, and also after a restart of a gateway."""
    models = tuple(tiny(tmp_path, name) for name in ("a", "b", "new"))
    async with (
        neuron(tmp_path, ROOM_MB) as node,
        gateway({"here": node.url}, models, **EAGER) as other,
    ):
        async with gateway({"here": node.url}, models, **EAGER) as one:
            await one.chat("a")
            await one.chat("b")
            loaded = {m: v.id for m in ("a", "b") if (v := view(one, m)) is not None}
            await until(lambda: (node.runtime.last_use.idle_s(loaded["b"]) or 0.0) > 1.5)
            await other.chat("a")
            await until(lambda: last_used(one, "a") > last_used(one, "b"))
        async with gateway({"here": node.url}, models, **EAGER) as restarted:
            await until(lambda: view(restarted, "a") is not None)
            assert last_used(restarted, "a") > last_used(restarted, "b")
            assert is_whole(await ask(restarted, "new", 3))
        assert {i.spec.model_id for i in node.runtime.instances.snapshots} == {"a", "new"}


async def test_directives_hold_for_every_gateway(tmp_path: Path) -> None:
    """A pin, a cordon and a time to live that one gateway set hold for all, and any of them can lift them."""
    models = (tiny(tmp_path, "a"),)
    async with neuron(tmp_path, ROOM_MB) as node:
        async with gateway({"here": node.url}, models) as one:
            await one.operator.load(LoadModelRequest(model="a", wait=True, ttl_s=600))
            await one.operator.pin(PinModelRequest(model="a"))
            await one.operator.cordon(NodeRequest(node="here"))
        async with (
            gateway({"there": node.url}, models) as two,
            gateway({"here": node.url}, models) as three,
        ):
            for served in (two, three):
                await until(lambda s=served: cordoned(s) == [True])
                assert [p.model for p in served.gateway.controller.directives.pins.all()] == ["a"]
                assert served.gateway.controller.desired_state.ttls == {"a": 600}
            await two.operator.uncordon(NodeRequest(node="there"))
            await two.operator.unpin(UnpinModelRequest(model="a"))
            await until(lambda: cordoned(three) == [False])
            await until(lambda: not three.gateway.controller.directives.pins.all())


async def test_a_cordon_of_a_node_that_is_away_reaches_it_later(tmp_path: Path) -> None:
    """What an operator sets while a node is away is kept there once it is back, and other gateways learn of it."""
    models = (tiny(tmp_path, "a"),)
    port = port_of_a_node_that_is_off()
    url = f"http://127.0.0.1:{port}"
    async with gateway({"here": url}, models) as one, gateway({"here": url}, models) as two:
        await one.operator.cordon(NodeRequest(node="here"))
        async with neuron(tmp_path, ROOM_MB, port=port):
            await until(lambda: cordoned(two) == [True])


async def test_one_neuron_under_two_addresses_is_one_node(tmp_path: Path) -> None:
    """The second name of a neuron is refused with the reason, and its memory is not counted twice."""
    models = (tiny(tmp_path, "a"),)
    async with neuron(tmp_path, ROOM_MB) as node:
        twin = node.url.replace("127.0.0.1", "localhost")
        async with gateway({"here": node.url, "twin": twin}, models) as served:
            await until(lambda: "same neuron as" in str(reasons(served)))
            await served.chat("a")
            assert sum(n.state == "up" for n in served.gateway.fleet.snapshot.nodes) == 1
            assert len(served.gateway.fleet.snapshot.instances()) == 1


async def test_a_preload_is_loaded_when_its_node_appears(tmp_path: Path) -> None:
    """A gateway that starts hours before its node loads what is preloaded once the node is up."""
    models = (tiny(tmp_path, "a", preload=True),)
    port = port_of_a_node_that_is_off()
    async with gateway({"here": f"http://127.0.0.1:{port}"}, models) as served:
        await until(lambda: served.gateway.fleet.state("here") == "unreachable")
        async with neuron(tmp_path, ROOM_MB, port=port):
            await until(lambda: bool(served.gateway.fleet.ready("a")))


@pytest.mark.timeout(240)
async def test_two_gateways_share_scarce_memory(tmp_path: Path) -> None:
    """Under load for four models on memory for two, nothing is overcommitted and no stream is cut."""
    names = [f"m{i}" for i in range(4)]
    models = tuple(tiny(tmp_path, name) for name in names)
    over = asyncio.Event()
    async with (
        neuron(tmp_path, ROOM_MB) as node,
        gateway({"here": node.url}, models, **EAGER) as one,
        gateway({"here": node.url}, models, **EAGER) as other,
    ):

        async def watch() -> int:
            most = 0
            while not over.is_set():
                infos = node.runtime.models(lambda _: "http://127.0.0.1:1")
                most = max(most, sum(sum(i.vram_by_device) for i in infos))
                await asyncio.sleep(0.01)
            return most

        async def client(number: int) -> list[str]:
            served = (one, other)[number % 2]
            return [await ask(served, names[(number + n) % 4], 40) for n in range(4)]

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(client(number) for number in range(16)))
        over.set()
        assert await watching <= ROOM_MB
        assert [text for found in answers for text in found if not is_whole(text)] == []
        for served in (one, other):
            controller = served.gateway.controller
            await until(lambda c=controller: all(c.progress(n) is None for n in names), 60)
            await until(
                lambda s=served: all(i.in_flight == 0 for i in s.gateway.fleet.snapshot.instances())
            )
