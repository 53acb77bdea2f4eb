"""The neuron's HTTP API, with a real neuron process, the embedded engine and the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import NeuronRig, engine_http, fake, lines_of, load, running, until
from rigs.lazy_import import openai

from cortex_common.errors import BadRequest, Conflict, DoesNotFit, ModelNotFound, UpstreamFailed
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, LoadSpec, UnloadRequest
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a 2 MB model."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=3)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a 2 MB model whose answers never end by themselves, with a context that no test fills."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "endless.gguf", context=1 << 20)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """Provide a neuron that the tests of this module share; each of them unloads what it loaded."""
    yield from running(NeuronRig(tmp_path_factory.mktemp("neuron"), memory_mb=900))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron that the test can stop."""
    yield from running(NeuronRig(tmp_path / "neuron", memory_mb=1000))


def tiny(weights: Path, model: str = "tiny/one", **more: object) -> LoadSpec:
    """Return a spec for the embedded engine."""
    spec = {"model_id": model, "harness": "embedded", "source": str(weights), "vram_mb": 300}
    return LoadSpec.model_validate(spec | more)


async def test_discovery_lists_the_cpu_device_and_the_harnesses(rig: NeuronRig):
    """A host without GPUs offers its RAM as a device if configured to."""
    async with rig.client() as client:
        discovery = await client.discovery()
        health = await client.health()
    assert [d.kind for d in discovery.devices] == [DeviceKind.CPU]
    assert discovery.devices[0].vram_total_mb == 900
    assert discovery.harnesses == ("embedded", "fake")
    assert discovery.hostname
    assert discovery.kernel
    reading = health.devices[0]
    assert reading.vram_used_mb + reading.vram_free_mb == 900
    assert health.uptime_secs > 0


async def test_a_model_is_loaded_queried_and_unloaded(rig: NeuronRig, weights: Path):
    """A load, a streamed answer and an unload, after which the node is empty again."""
    async with rig.client() as client:
        ready = await load(client, tiny(weights))
        where = await client.endpoint("tiny/one")
        assert where.url == ready.url
        assert where.instance_id == ready.instance_id
        assert ready.context == 4096
        assert ready.vram_used_mb >= 300
        assert ready.load_seconds
        assert ready.engine_version
        assert (await client.load(tiny(weights))).status == "loaded"
        sdk = openai.AsyncOpenAI(
            base_url=f"{where.url}/v1", api_key=where.api_key or "none", max_retries=0
        )
        async with sdk:
            stream = await sdk.chat.completions.create(
                model="tiny/one",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text.strip()
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        answer = await client.unload(UnloadRequest(model_id="tiny/one", drain_seconds=2))
        assert answer.status == "unloaded"
        assert await client.models() == ()
        assert (await client.health()).devices[0].vram_used_mb == 0


async def test_concurrent_loads_of_one_model_share_an_instance(rig: NeuronRig, tmp_path: Path):
    """A repeated load without an instance id joins the pending one."""
    async with rig.client() as client:
        first, second = await asyncio.gather(
            client.load(fake("twice", "--listen-on", str(tmp_path / "never"))),
            client.load(fake("twice", "--listen-on", str(tmp_path / "never"))),
        )
        assert first.instance_id == second.instance_id
        assert {first.status, second.status} == {"loading"}
        await client.unload(UnloadRequest(model_id="twice"))


async def test_a_model_can_have_several_instances(rig: NeuronRig):
    """Different instance ids create separate copies, which can be unloaded individually."""
    async with rig.client() as client:
        await load(client, fake("pair", instance_id="left"))
        await load(client, fake("pair", instance_id="right"))
        await client.unload(UnloadRequest(model_id="pair", instance_id="left"))
        assert [m.instance_id for m in await client.models()] == ["right"]
        await client.unload(UnloadRequest(model_id="pair"))
        assert await client.models() == ()


async def test_an_instance_id_with_another_spec_is_a_conflict(rig: NeuronRig):
    """An instance id can be reused only with the same spec."""
    async with rig.client() as client:
        await client.load(fake("mine", instance_id="one"))
        with pytest.raises(Conflict):
            await client.load(fake("mine", "--tokens", "3", instance_id="one"))
        assert (await client.load(fake("mine", instance_id="one"))).instance_id == "one"
        await client.unload(UnloadRequest(model_id="mine"))


async def test_invalid_requests_are_rejected_with_hints(rig: NeuronRig, tmp_path: Path):
    """Client errors get 400 or 404 with suggestions, never 422 or 500."""
    async with (
        rig.client() as client,
        httpx.AsyncClient(base_url=rig.url, headers=rig.headers) as raw,
    ):
        with pytest.raises(BadRequest, match="no harness 'embeded'") as unknown:
            await client.load(LoadSpec(model_id="m", harness="embeded"))
        assert unknown.value.hints == ("did you mean 'embedded'?",)
        with pytest.raises(BadRequest, match="there is no file"):
            await client.load(tiny(tmp_path / "nothing.gguf"))
        with pytest.raises(BadRequest, match="no device 7"):
            await client.load(fake("m", devices=(7,)))
        with pytest.raises(ModelNotFound):
            await client.unload(UnloadRequest(model_id="never/loaded"))
        with pytest.raises(ModelNotFound):
            await client.endpoint("never/loaded")
        for body in (b"", b"{", b"[]", b'{"model": "x"}', b'{"model_id": "x", "harness": 1}'):
            answer = await raw.post(
                "/models/load", content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400, body
            assert answer.json()["error"]["src"] == "cortex"
        assert (await raw.get("/nothing")).json()["error"]["code"] == "not_found"
        await client.load(fake("org/name"))
        with pytest.raises(ModelNotFound) as misspelled:
            await client.endpoint("org/nam")
        assert misspelled.value.hints == ("did you mean 'org/name'?",)
        await client.unload(UnloadRequest(model_id="org/name"))


async def test_a_load_that_does_not_fit_is_refused_with_numbers(rig: NeuronRig):
    """A device of 900 MiB holds two models of 400 MiB; the refusal of a third reports the available memory."""
    async with rig.client() as client:
        await load(client, fake("first", vram_mb=400))
        await load(client, fake("second", vram_mb=400))
        with pytest.raises(DoesNotFit) as refused:
            await client.load(fake("third", vram_mb=400))
        assert refused.value.details["needed_mb"] == 400
        (device,) = refused.value.details["devices"]
        assert device["index"] == 0
        free, reserved = device["free_mb"], device["reserved_mb"]
        assert free - reserved == device["available_mb"] == 100
        await client.unload(UnloadRequest(model_id="first"))
        await load(client, fake("third", vram_mb=400))
        await client.unload(UnloadRequest(model_id="second"))
        await client.unload(UnloadRequest(model_id="third"))


async def test_of_twenty_concurrent_loads_exactly_those_that_fit_are_admitted(rig: NeuronRig):
    """Concurrent loads are never granted the same memory, and refused loads leave no reservation behind."""
    async with rig.client() as client:
        specs = [fake(f"m{n}", "--hang-at-load", vram_mb=200) for n in range(20)]
        answers = await asyncio.gather(*map(client.load, specs), return_exceptions=True)
        refused = [a for a in answers if isinstance(a, DoesNotFit)]
        assert len(refused) == 16
        for refusal in refused:
            (device,) = refusal.details["devices"]
            assert device["available_mb"] == device["free_mb"] - device["reserved_mb"] == 100
        admitted = await client.models()
        assert len(admitted) == 4
        assert (await client.health()).devices[0].vram_available_mb == 100
        await asyncio.gather(*(client.unload(UnloadRequest(model_id=m.id)) for m in admitted))
        after = (await client.health()).devices[0]
        assert after.vram_reserved_mb == 0
        assert after.vram_available_mb == 900


async def test_a_disconnect_cancels_the_generation(rig: NeuronRig, endless: Path):
    """When a client of the embedded engine disconnects, streaming or not, the engine stops computing."""
    async with rig.client() as client:
        ready = await load(client, tiny(endless, "tiny/gone"))
        for stream in (True, False):
            body = {
                "messages": [{"role": "user", "content": "x"}],
                "stream": stream,
                "max_tokens": 1_000_000,
            }
            async with engine_http(ready) as http:
                request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                async with asyncio.timeout(30):
                    while (await http.get("/health")).json()["running"] == 0:
                        pass
                    request.cancel()
                    await asyncio.gather(request, return_exceptions=True)
                    while (await http.get("/health")).json()["running"] > 0:
                        pass
        await client.unload(UnloadRequest(model_id="tiny/gone"))


async def test_events_start_with_the_whole_status_and_follow_changes(
    rig: NeuronRig, tmp_path: Path
):
    """A subscriber sees an instance appear, become ready and vanish, each time in a complete status."""
    listen = tmp_path / "listen"
    async with (
        rig.client() as client,
        asyncio.timeout(60),
        contextlib.aclosing(client.watch_status()) as events,
    ):

        async def expect(*states: str) -> None:
            async for status in events:
                if tuple(str(model.status) for model in status.models) == states:
                    return
            raise AssertionError(f"the stream ended before {states}")

        await expect()
        await client.load(fake("watched", "--listen-on", str(listen)))
        await expect("loading")
        listen.touch()
        await expect("ready")
        await client.unload(UnloadRequest(model_id="watched"))
        await expect()


async def test_lifecycle_events_can_be_resumed(rig: NeuronRig):
    """Lifecycle entries arrive in order, and a subscriber that reconnects with its last id gets those it missed."""

    async def read(last: str | None, until_event: str) -> tuple[list[str], str]:
        headers = {"last-event-id": last} if last else {}
        names, number, kind = [], "", ""
        async with (
            asyncio.timeout(60),
            httpx.AsyncClient(base_url=rig.url, headers=rig.headers) as http,
            http.stream("GET", "/events", headers=headers) as stream,
        ):
            async for line in stream.aiter_lines():
                key, _, value = line.partition(": ")
                number = value if key == "id" else number
                kind = value if key == "event" else kind
                if key == "data" and kind == "lifecycle":
                    names.append(json.loads(value)["event"])
                if key == "data" and until_event in {kind, *names[-1:]}:
                    return names, number
        raise AssertionError(f"the stream ended: {names}")

    events, last = await read(None, "status")
    assert events == []
    async with rig.client() as client:
        await load(client, fake("logged"))
        await client.unload(UnloadRequest(model_id="logged"))
    expected = [
        "load_admitted",
        "engine_started",
        "instance_ready",
        "unload_started",
        "instance_unloaded",
    ]
    assert (await read(last, "instance_unloaded"))[0] == expected


async def test_metrics_show_devices_and_instances(rig: NeuronRig):
    """GET /metrics has the numbers of /health and the state of each instance."""
    async with (
        rig.client() as client,
        httpx.AsyncClient(base_url=rig.url, headers=rig.headers) as http,
    ):
        await load(client, fake("org/seen", instance_id="seen"))
        text = (await http.get("/metrics")).text
        assert 'cortex_neuron_device_memory_bytes{device="0",kind="available"} 8.388608e+08' in text
        names = 'instance="seen",model="org/seen"'
        assert f'cortex_neuron_instance_state{{{names},state="ready"}} 1.0' in text
        assert f"cortex_neuron_instance_memory_bytes{{{names}}} 1.048576e+08" in text
        await client.unload(UnloadRequest(model_id="org/seen"))


async def test_unload_waits_for_an_idle_engine(rig: NeuronRig, tmp_path: Path):
    """A draining instance finishes its stream before it is stopped."""
    finish, first = tmp_path / "finish", asyncio.Event()
    async with rig.client() as client, asyncio.timeout(60):
        ready = await load(client, fake("drained", "--finish-on", str(finish)))
        stream = asyncio.create_task(lines_of(ready, tokens=5, first=first))
        await first.wait()
        request = UnloadRequest(model_id="drained", drain_seconds=60)
        unloading = asyncio.create_task(client.unload(request))
        await until(client, lambda models: models[0].status is InstanceState.DRAINING)
        assert not stream.done()
        finish.touch()
        assert (await stream)[-1] == "[DONE]"
        await unloading


async def test_sigterm_stops_all_engines(small: NeuronRig, weights: Path):
    """A neuron that receives SIGTERM drains and stops its engines, and exits with status 0."""
    async with small.client() as client:
        await load(client, tiny(weights))
        await client.load(fake("loading", "--hang-at-load"))
        await load(client, fake("stubborn", "--ignore-term", "--child"))
        assert len(small.engines()) == 4
    assert await asyncio.to_thread(small.stop) == 0
    assert small.engines() == []


async def test_the_engine_survives_a_killed_neuron_and_is_adopted(small: NeuronRig, tmp_path: Path):
    """Killing the neuron cuts no stream; the next neuron adopts the engine and can unload it."""
    finish, first = tmp_path / "finish", asyncio.Event()
    async with small.client() as client:
        spec = fake("kept", "--finish-on", str(finish), instance_id="kept")
        ready = await load(client, spec)
    stream = asyncio.create_task(lines_of(ready, tokens=5, first=first))
    async with asyncio.timeout(60):
        await first.wait()
        assert await asyncio.to_thread(small.stop, signal.SIGKILL) == -signal.SIGKILL
        small.start()
        async with small.client() as client:
            (adopted,) = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
            assert (adopted.instance_id, adopted.url) == ("kept", ready.url)
            assert not stream.done()
            finish.touch()
            assert (await stream)[-1] == "[DONE]"
            await client.unload(UnloadRequest(model_id="kept"))
            assert await client.models() == ()
    assert small.engines() == []


async def test_an_unreachable_neuron_is_named_in_the_error(tmp_path: Path):
    """The error for an unreachable neuron names the node."""
    rig = NeuronRig(tmp_path / "neuron").start()
    rig.stop()
    async with rig.client("token") as client:
        with pytest.raises(UpstreamFailed, match="node test"):
            await client.health()


async def test_an_unwritable_state_directory_only_causes_a_warning(small: NeuronRig):
    """Loads and unloads still work, the host reports a warning, and records are written once that is possible again."""
    records = small.directory / "state" / "instances"
    async with small.client() as client:
        before = await load(client, fake("before"))
        records.rename(records.with_name("elsewhere"))
        meanwhile = await load(client, fake("meanwhile"))
        warnings = (await client.discovery()).warnings
        assert [w.code for w in warnings] == ["state_write_failed"]
        await client.unload(UnloadRequest(model_id="before"))
        assert [m.id for m in await client.models()] == ["meanwhile"]
        assert len(small.engines()) == 1
        records.mkdir()
        async with asyncio.timeout(60), contextlib.aclosing(client.watch_status()) as events:
            async for _ in events:
                if not (await client.discovery()).warnings:
                    break
    written = [path.stem for path in records.iterdir()]
    assert written == [meanwhile.instance_id]
    assert before.instance_id not in written
