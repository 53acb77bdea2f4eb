"""A neuron on a network address: relayed engines, and its token."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import NeuronRig, fake, load, running, until, wait_for

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import AuthenticationFailed
from cortex_common.schema.instances import NodeStatus, UnloadRequest

TOKEN = "only-for-this-test"
AUTH = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """Provide a neuron that listens on all addresses and requires a token."""
    directory = tmp_path_factory.mktemp("neuron")
    yield from running(NeuronRig(directory, neuron=f'token = "{TOKEN}"', listen="0.0.0.0:0"))


async def stats(http: httpx.AsyncClient, url: str) -> dict[str, int]:
    """Return what the fake engine received."""
    found: dict[str, int] = (await http.get(f"{url}/fake/stats")).json()
    return found


async def test_the_token_guards_everything(rig: NeuronRig):
    """Without the token, or with a wrong one, every route returns 401."""
    async with rig.client("wrong") as client:
        with pytest.raises(AuthenticationFailed):
            await client.health()
    async with httpx.AsyncClient(base_url=rig.url) as http:
        for path in ("/models", "/discovery", "/events", "/engines/x/v1/models"):
            assert (await http.get(path)).status_code == 401, path


async def test_requests_are_relayed_as_they_come(rig: NeuronRig):
    """The endpoint is the neuron's, tokens arrive one by one, and the engine listens on loopback only."""
    async with rig.client(TOKEN) as client:
        ready = await load(client, fake("far", "--interval", "0.1", "--tokens", "20"))
        assert ready.url == f"{rig.url}/engines/{ready.instance_id}"
        assert (await client.endpoint("far")).url == ready.url
        body = {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
        data: list[str] = []
        async with httpx.AsyncClient(headers=AUTH) as http:
            url = f"{ready.url}/v1/chat/completions"
            async with http.stream("POST", url, json=body) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        if not data:  # the engine has not sent everything yet
                            assert (await stats(http, ready.url or ""))["in_flight"] == 1
                        data.append(line[6:])
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["usage"]["completion_tokens"] == 20
        await client.unload(UnloadRequest(model_id="far"))


async def test_a_caller_that_leaves_a_relayed_request_cancels_it(rig: NeuronRig):
    """The relay closes the engine's connection when the caller disconnects, streaming or not."""
    async with rig.client(TOKEN) as client:
        ready = await load(client, fake("left", "--interval", "0.05", "--tokens", "400"))
        for expected, stream in enumerate((True, False), start=1):
            async with httpx.AsyncClient(headers=AUTH, timeout=20) as http:
                url = f"{ready.url}/v1/chat/completions"
                pending = asyncio.create_task(
                    http.post(url, json={"messages": [], "stream": stream})
                )
                await until(client, lambda models: models[0].in_flight == 1)
                async with asyncio.timeout(5):
                    while (await stats(http, ready.url or ""))["in_flight"] < 1:
                        pass
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
                async with asyncio.timeout(5):
                    while (await stats(http, ready.url or ""))["cancelled"] < expected:
                        pass
            await until(client, lambda models: models[0].in_flight == 0)
        await client.unload(UnloadRequest(model_id="left"))


async def test_an_engine_that_dies_mid_stream_breaks_the_relayed_stream(rig: NeuronRig):
    """If the engine breaks, the caller's response is incomplete."""
    async with rig.client(TOKEN) as client:
        ready = await load(client, fake("dies", "--die-at", "3"))
        async with httpx.AsyncClient(headers=AUTH) as http:
            url = f"{ready.url}/v1/chat/completions"
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(url, json={"messages": [], "stream": True})
        await client.unload(UnloadRequest(model_id="dies"))


@contextlib.asynccontextmanager
async def stopping(
    directory: Path, interval: str, tokens: int, setting: str = ""
) -> AsyncIterator[tuple[NeuronRig, list[str], asyncio.Task[int]]]:
    """Stop a neuron with one stream through its relay, whose lines are collected; its engine keeps running."""
    rig = NeuronRig(directory, neuron=f'on_stop = "keep"\n{setting}', listen="0.0.0.0:0")
    try:
        async with (
            rig.start().client() as client,
            httpx.AsyncClient(timeout=20, headers=rig.headers) as http,
        ):
            spec = fake("far", "--interval", interval, "--tokens", str(tokens))
            ready = await load(client, spec)
            url = f"{ready.url}/v1/chat/completions"
            following = asyncio.create_task(http.get(f"{rig.url}/models/far/logs?follow=true"))
            heard = asyncio.Event()
            last_message = asyncio.create_task(_last_message(client, heard))
            await heard.wait()
            async with http.stream("POST", url, json={"messages": [], "stream": True}) as answer:
                lines = answer.aiter_lines()
                seen = [await anext(lines)]
                ended = asyncio.create_task(asyncio.to_thread(rig.stop))
                yield rig, seen, ended
                with contextlib.suppress(httpx.RemoteProtocolError):
                    seen.extend([line async for line in lines])
            assert await ended == 0
            assert (await following).status_code == 200
            assert (await last_message).stopping_s == (1 if setting else 150)
    finally:
        rig.close()


async def _last_message(client: NeuronClient, heard: asyncio.Event) -> NodeStatus:
    """Return the last message of a neuron's events; set `heard` on the first."""
    async for status in client.watch_status():
        heard.set()
        last = status
    return last


async def until_refused(url: str) -> None:
    """Return once connections are refused; a server checks its signals ten times a second."""
    async with httpx.AsyncClient(headers={"connection": "close"}) as http, asyncio.timeout(10):
        with contextlib.suppress(httpx.TransportError):
            while True:
                await http.get(url)


async def test_a_stopping_neuron_completes_relayed_streams(tmp_path: Path):
    """On SIGTERM in mid-stream no new request is accepted, gateways learn the time left, and the stream completes."""
    async with stopping(tmp_path, "0.05", 40) as (rig, seen, ended):
        await asyncio.to_thread(wait_for, lambda: "neuron_draining" in rig.log.read_text(), 10)
        await until_refused(f"{rig.url}/models")
        assert not ended.done()
    assert "data: [DONE]" in seen
    assert "relayed=1" in rig.log.read_text()


async def test_a_relayed_stream_holds_up_a_stop_no_longer_than_the_setting_says(tmp_path: Path):
    """After `relay_drain_s` an endless stream is cut, and the neuron exits."""
    async with stopping(tmp_path, "0.1", 100_000, "relay_drain_s = 1") as (_, seen, _ended):
        pass
    assert "data: [DONE]" not in seen


async def test_direct_access_shows_the_engines_own_address(tmp_path: Path):
    """With engine_access = "direct" engines listen on the configured address, and callers connect there."""
    settings = 'engine_access = "direct"\nengine_host = "127.0.0.2"'
    rig = NeuronRig(tmp_path / "neuron", neuron=settings, listen="0.0.0.0:0").start()
    try:
        async with rig.client() as client, httpx.AsyncClient() as http:
            ready = await load(client, fake("near"))
            assert (ready.url or "").startswith("http://127.0.0.2:")
            assert (await http.get(f"{ready.url}/health")).status_code == 200
    finally:
        rig.close()
