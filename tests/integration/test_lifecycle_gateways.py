"""Two gateways that share a neuron never overcommit it, and neither cuts the other's streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lifecycle_kit import MODEL_MB, Served, gateway, neuron, tiny, until

from cortex_common.schema.fleet import InstanceView

ROOM_MB = 2 * MODEL_MB + 8
EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"drain_timeout": 30, "min_residency": 0}}


def view(served: Served, model: str) -> InstanceView | None:
    """Return a model's instance as a gateway sees it."""
    found = (i for i in served.gateway.fleet.snapshot.instances() if i.model == model)
    return next(found, None)


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
        held = {i.id for i in node.runtime.models(lambda _: "")}
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
                infos = node.runtime.models(lambda _: "")
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
