"""An instance that another gateway uses counts as busy, is evicted last, and no eviction cuts its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest
from engines.neuron_rig import NeuronRig, fake, load, running, until

from cortex_common.errors import InstanceBusy
from cortex_common.schema.instances import InstanceState, UnloadRequest

TOKEN = "only-for-this-test"
AUTH = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """Provide a neuron that relays, because the fake engine does not report requests in flight."""
    directory = tmp_path_factory.mktemp("neuron")
    yield from running(NeuronRig(directory, neuron=f'token = "{TOKEN}"', listen="0.0.0.0:0"))


async def test_an_unload_that_may_not_cut_is_refused(rig: NeuronRig) -> None:
    """Without `force` a busy instance stays, accepts requests and completes its stream; once idle it is unloaded."""
    async with (
        rig.client(TOKEN) as client,
        httpx.AsyncClient(headers=AUTH, timeout=30.0) as http,
    ):
        ready = await load(client, fake("slow", "--interval", "0.1", "--tokens", "15"))
        assert ready.url is not None
        body = {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
        url = f"{ready.url}/v1/chat/completions"
        async with http.stream("POST", url, json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            busy = await until(client, lambda models: models[0].in_flight == 1)
            assert busy[0].status is InstanceState.READY
            request = UnloadRequest(model_id="slow", drain_seconds=0.2, force=False)
            with pytest.raises(InstanceBusy) as refused:
                await client.unload(request)
            assert refused.value.details["instance"] == ready.instance_id
            assert (await client.models())[0].status is InstanceState.READY
            data = [line[6:] async for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["usage"]["completion_tokens"] == 15
        await client.unload(UnloadRequest(model_id="slow", drain_seconds=5.0, force=False))
        assert await client.models() == ()


async def test_a_forced_unload_succeeds_after_an_unforced_one_is_refused(rig: NeuronRig) -> None:
    """An operator's forced unload succeeds after its drain timeout, after an unforced one was refused."""
    async with (
        rig.client(TOKEN) as client,
        httpx.AsyncClient(headers=AUTH, timeout=30.0) as http,
    ):
        ready = await load(client, fake("held", "--interval", "0.5", "--tokens", "200"))
        url = f"{ready.url}/v1/chat/completions"
        async with http.stream("POST", url, json={"messages": [], "stream": True}) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            with pytest.raises(InstanceBusy):
                await client.unload(UnloadRequest(model_id="held", force=False))
            async with asyncio.timeout(10):
                await client.unload(UnloadRequest(model_id="held", drain_seconds=0.2))
        assert await client.models() == ()
