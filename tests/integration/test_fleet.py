"""Gateway, neuron and the real engine as processes, from an empty host to a streamed response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from rigs.fleet import MODELS, FleetRig, running_fleet
from rigs.lazy_import import openai

from cortex_common.errors import ModelNotFound, NotFound
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.schema.operations import LoadModelRequest, UnloadModelRequest

ADA, BOB, CLEO = MODELS
ASK = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FleetRig]:
    """Provide two gateways on one neuron, for tests that restore its state."""
    async with running_fleet(tmp_path_factory.mktemp("fleet"), gateways=2) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(fleet: FleetRig) -> AsyncIterator[openai.AsyncOpenAI]:
    """Provide OpenAI's client, configured only with the base URL."""
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


pytestmark = pytest.mark.asyncio(loop_scope="module")


def nobody_busy(snapshot: FleetSnapshot) -> bool:
    """Return whether all counts are back to zero."""
    return not any(i.in_flight for i in snapshot.instances()) and not any(
        m.waiting for m in snapshot.models
    )


async def test_a_request_loads_its_model_and_is_answered(fleet, sdk):
    """The first request for a model loads it and gets a complete response."""
    answer = await sdk.chat.completions.create(model=ADA, messages=ASK, max_tokens=8)
    assert answer.choices[0].finish_reason in {"length", "stop"}
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    models = {m.id: m.model_dump() for m in (await sdk.models.list()).data}
    assert set(models) == set(MODELS)
    assert models[ADA]["state"] == "ready"
    assert models[ADA]["nodes"] == ["beast"]
    assert (await sdk.models.retrieve(ADA)).id == ADA


async def test_tokens_arrive_while_the_engine_still_computes(fleet, sdk):
    """A streamed response has many chunks, and usage at its end if requested."""
    stream = await sdk.chat.completions.create(
        model=ADA,
        messages=ASK,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = [chunk async for chunk in stream]
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 40
    assert any(c.choices and c.choices[0].finish_reason for c in chunks)


async def test_completions_work_streamed_and_not_streamed(fleet, sdk):
    """/v1/completions works streamed and not streamed."""
    whole = await sdk.completions.create(model=ADA, prompt="once", max_tokens=4)
    assert whole.usage is not None
    stream = await sdk.completions.create(model=ADA, prompt="once", max_tokens=4, stream=True)
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason is not None


async def test_the_bytes_are_the_engines_own(fleet):
    """With the same seed at temperature 0, engine and gateway stream the same text."""
    body = {"model": ADA, "messages": ASK, "max_tokens": 12, "temperature": 0, "stream": True}

    def text(raw: bytes) -> str:
        events = [json.loads(e[6:]) for e in raw.decode().split("\n\n") if e[6:7] == "{"]
        return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])

    async with httpx.AsyncClient(timeout=60) as client:
        through = await client.post(f"{fleet.url}/v1/chat/completions", json=body)
        snapshot = await fleet.until(lambda s: s.model(ADA).state == "ready")
        engine = next(i.url for i in snapshot.instances() if i.model == ADA)
        async with fleet.node() as node:
            key = (await node.endpoint(ADA)).api_key
        headers = {"authorization": f"Bearer {key}"}
        direct = await client.post(f"{engine}/v1/chat/completions", json=body, headers=headers)
        without_key = await client.post(f"{engine}/v1/chat/completions", json=body)
    assert text(direct.content) == text(through.content) != ""
    assert without_key.status_code == 401
    assert key not in SNAPSHOT.dump_json(snapshot).decode()


async def test_many_requests_for_an_unloaded_model_share_one_load(fleet, sdk):
    """Ten concurrent requests cause one load, and all succeed."""
    async with fleet.operator() as operator:
        with contextlib.suppress(NotFound):  # nothing to unload
            await operator.unload(UnloadModelRequest(model=BOB))
    answers = await asyncio.gather(
        *(
            sdk.chat.completions.with_raw_response.create(model=BOB, messages=ASK, max_tokens=2)
            for _ in range(10)
        )
    )
    assert {a.headers["x-cortex-cold-start"] for a in answers} == {"true"}
    assert len({a.headers["x-cortex-instance"] for a in answers}) == 1
    snapshot = await fleet.until(nobody_busy)
    assert sum(i.model == BOB for i in snapshot.instances()) == 1


async def test_a_second_gateway_uses_what_the_first_has_loaded(fleet, sdk):
    """A request through the other gateway uses the existing instance and loads no second one."""
    await sdk.chat.completions.create(model=CLEO, messages=ASK, max_tokens=1)
    await fleet.until(lambda s: s.model(CLEO).state == "ready", number=1)
    url = f"{fleet.gateways[1].url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as other:
        raw = await other.chat.completions.with_raw_response.create(
            model=CLEO, messages=ASK, max_tokens=1
        )
    assert "x-cortex-cold-start" not in raw.headers
    async with fleet.node() as node:
        assert sum(m.id == CLEO for m in await node.models()) == 1


async def test_load_and_unload_by_an_operator(fleet):
    """`load` returns when the model is ready; after `unload` the engine's process is gone."""
    async with fleet.operator() as operator:
        loaded = await operator.load(LoadModelRequest(model=CLEO, wait=True))
        assert (loaded.state, loaded.nodes) == ("ready", ("beast",))
        before = len(fleet.engines())
        assert (await operator.unload(UnloadModelRequest(model=CLEO))).state == "unloaded"
        assert len(fleet.engines()) == before - 1
        with pytest.raises(ModelNotFound, match="tiny/clea"):
            await operator.load(LoadModelRequest(model="tiny/clea"))


async def test_an_unknown_model_is_a_404_with_a_hint(fleet, sdk):
    """The SDK raises NotFoundError with a suggestion of the nearest model."""
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat.completions.create(model="tiny/adda", messages=ASK)
    assert caught.value.body["code"] == "model_not_found"
    assert ADA in caught.value.body["nearest"]


async def test_a_route_that_the_engine_lacks_is_an_error(fleet, sdk):
    """Embeddings of a model whose engine has none fail with an error."""
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.embeddings.create(model=ADA, input="x")
    assert caught.value.status_code in {404, 501}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(fleet, stream):
    """The engine stops computing when its client disconnects, so its request count drops to zero."""
    body = {
        "model": ADA,
        "messages": ASK,
        "max_tokens": 100_000,
        "stream": stream,
        "ignore_eos": True,
    }
    await fleet.until(nobody_busy)
    async with httpx.AsyncClient(timeout=60) as client:
        pending = asyncio.ensure_future(client.post(f"{fleet.url}/v1/chat/completions", json=body))
        snapshot = await fleet.until(lambda s: s.model(ADA).in_flight == 1)
        engine = next(i.url for i in snapshot.instances() if i.model == ADA)
        pending.cancel()
        await fleet.until(nobody_busy)
        async with asyncio.timeout(10):
            while (await client.get(f"{engine}/health")).json()["running"]:
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_two_hundred_streams_on_three_models_are_complete(fleet, sdk):
    """Every stream ends with a finish reason and usage, and every count returns to zero."""

    async def one(number: int) -> bool:
        stream = await sdk.chat.completions.create(
            model=MODELS[number % 3],
            messages=ASK,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        finished = any(c.choices and c.choices[0].finish_reason for c in chunks)
        return finished and chunks[-1].usage is not None

    assert all(await asyncio.gather(*(one(n) for n in range(200))))
    snapshot = await fleet.until(nobody_busy)
    assert sum(m.requests for m in snapshot.models) >= 200


async def test_what_does_not_fit_at_all_is_refused_at_once(tmp_path):
    """A model larger than the only device is refused with the memory sizes, without a load."""
    async with (
        running_fleet(tmp_path, memory_mb=100) as rig,
        openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.chat.completions.create(model=ADA, messages=ASK)
        assert caught.value.status_code == 507
        assert caught.value.body["code"] == "does_not_fit"
        assert not rig.engines()


@pytest.mark.slow
async def test_a_third_model_evicts_the_least_recently_used(tmp_path):
    """On a device that holds two of three models, round-robin requests cause evictions and no error."""
    async with (
        running_fleet(tmp_path, memory_mb=2 * 256 + 8) as rig,
        openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        cold = []
        for model in (ADA, BOB, CLEO, ADA):
            raw = await sdk.chat.completions.with_raw_response.create(
                model=model, messages=ASK, max_tokens=2
            )
            cold.append(raw.headers.get("x-cortex-cold-start"))
        assert cold == ["true", "true", "true", "true"]
        assert len(rig.engines()) == 2


async def test_a_killed_gateway_costs_no_engine_and_a_new_one_finds_it(tmp_path):
    """After a kill -9 of the gateway the engine keeps running, and a new gateway routes to it."""
    async with running_fleet(tmp_path) as rig:
        async with rig.operator() as operator:
            await operator.load(LoadModelRequest(model=ADA, wait=True))
        engine = rig.engines()[0].pid
        rig.gateways[0].end(signal.SIGKILL)
        rig.gateways[0].start()
        await rig.gateways[0].wait_healthy()
        await rig.until(lambda s: s.model(ADA).state == "ready")
        assert [p.pid for p in rig.engines()] == [engine]


async def test_requests_wait_while_a_neuron_restarts(tmp_path):
    """While its only neuron is stopped the gateway is not ready, and requests wait until the neuron is back."""
    async with running_fleet(tmp_path) as rig, httpx.AsyncClient(timeout=60) as client:
        rig.neuron.end()
        await rig.wait_engines_stopped()
        await rig.until(lambda s: s.nodes[0].state == "unreachable")
        body = {"model": ADA, "messages": ASK, "max_tokens": 1}
        asked = asyncio.create_task(client.post(f"{rig.url}/v1/chat/completions", json=body))
        await rig.until(lambda s: bool((ada := s.model(ADA)) and ada.waiting))
        assert (await client.get(f"{rig.url}/ready")).status_code == 503
        rig.neuron.start()
        assert (await asked).status_code == 200


async def test_a_stopped_neuron_leaves_no_engine(tmp_path):
    """SIGTERM to the neuron stops its engines."""
    async with running_fleet(tmp_path) as rig:
        async with rig.operator() as operator:
            for model in MODELS:
                await operator.load(LoadModelRequest(model=model, wait=True))
        assert len(rig.engines()) == 3
        assert rig.neuron.end() == 0
        await rig.wait_engines_stopped()


async def test_a_stopping_gateway_completes_streams(tmp_path):
    """On SIGTERM in mid-stream the gateway completes the stream and exits with 0."""
    async with (
        running_fleet(tmp_path) as rig,
        openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as sdk,
        rig.operator() as operator,
    ):
        await operator.load(LoadModelRequest(model=ADA, wait=True))
        stream = await sdk.chat.completions.create(
            model=ADA,
            messages=ASK,
            max_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
        )
        await anext(stream)
        ending = asyncio.create_task(asyncio.to_thread(rig.gateways[0].end))
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert await ending == 0
