"""A real neuron with the real embedded engine, over its HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import NeuronRig, fake, load, running, until
from rigs.late import openai

from cortex_common.errors import BadRequest, Conflict, DoesNotFit, ModelNotFound, UpstreamFailed
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, LoadSpec, UnloadRequest
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2 MB."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=3)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """A neuron that this module's tests share, each leaving it empty."""
    yield from running(NeuronRig(tmp_path_factory.mktemp("neuron"), memory_mb=900))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[NeuronRig]:
    """A neuron of the test's own, to be ended by it."""
    yield from running(NeuronRig(tmp_path / "neuron", memory_mb=1000))


def tiny(weights: Path, model: str = "tiny/one", **more: object) -> LoadSpec:
    """A spec of the embedded engine."""
    spec = {"model_id": model, "harness": "embedded", "source": str(weights), "vram_mb": 300}
    return LoadSpec.model_validate(spec | more)


async def test_discovery_tells_the_cpu_device_and_the_harnesses(rig: NeuronRig):
    """A host without GPUs offers its RAM as a device when the configuration says so."""
    async with rig.client() as client:
        found = await client.discovery()
        health = await client.health()
    assert [d.kind for d in found.devices] == [DeviceKind.CPU]
    assert found.devices[0].vram_total_mb == 900
    assert found.harnesses == ("embedded", "fake")
    assert found.hostname
    assert found.kernel
    reading = health.devices[0]
    assert reading.vram_used_mb + reading.vram_free_mb == 900
    assert health.uptime_secs > 0


async def test_a_model_is_loaded_asked_and_unloaded(rig: NeuronRig, weights: Path):
    """The six calls lead from a file to a streamed answer and back to an empty node."""
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
        sdk = openai.AsyncOpenAI(base_url=f"{where.url}/v1", api_key="none", max_retries=0)
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


async def test_two_loads_of_one_model_are_one_instance(rig: NeuronRig):
    """A repeated load without an instance id joins the one that is under way."""
    async with rig.client() as client:
        first, second = await asyncio.gather(
            client.load(fake("twice", "--listen-after", "0.3")),
            client.load(fake("twice", "--listen-after", "0.3")),
        )
        assert first.instance_id == second.instance_id
        assert {first.status, second.status} == {"loading"}
        await client.unload(UnloadRequest(model_id="twice"))


async def test_a_model_may_have_several_instances(rig: NeuronRig):
    """Different instance ids make different copies, and each can be unloaded alone."""
    async with rig.client() as client:
        await load(client, fake("pair", instance_id="left"))
        await load(client, fake("pair", instance_id="right"))
        await client.unload(UnloadRequest(model_id="pair", instance_id="left"))
        assert [m.instance_id for m in await client.models()] == ["right"]
        await client.unload(UnloadRequest(model_id="pair"))
        assert await client.models() == ()


async def test_an_instance_id_with_another_spec_is_a_conflict(rig: NeuronRig):
    """A repeat is only a repeat when it asks for the same."""
    async with rig.client() as client:
        await client.load(fake("mine", instance_id="one"))
        with pytest.raises(Conflict):
            await client.load(fake("mine", "--tokens", "3", instance_id="one"))
        assert (await client.load(fake("mine", instance_id="one"))).instance_id == "one"
        await client.unload(UnloadRequest(model_id="mine"))


async def test_what_is_wrong_with_a_request_is_said(rig: NeuronRig, tmp_path: Path):
    """Mistakes of the caller are 400 or 404 with the nearest names, never 422 or 500."""
    async with rig.client() as client, httpx.AsyncClient(base_url=rig.url) as raw:
        with pytest.raises(BadRequest, match="no harness 'embeded'") as wrong:
            await client.load(LoadSpec(model_id="m", harness="embeded"))
        assert wrong.value.hints == ("did you mean 'embedded'?",)
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
        with pytest.raises(ModelNotFound) as close:
            await client.endpoint("org/nam")
        assert close.value.hints == ("did you mean 'org/name'?",)
        await client.unload(UnloadRequest(model_id="org/name"))


async def test_what_does_not_fit_is_refused_with_numbers(rig: NeuronRig):
    """A device of 900 MiB holds two models of 400 MiB and refuses the third with what it has."""
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


async def test_twenty_loads_at_once_admit_exactly_what_fits(rig: NeuronRig):
    """Loads that start together are never promised the same memory, and refused ones leave no promise behind."""
    async with rig.client() as client:
        asked = [client.load(fake(f"m{n}", "--loading", "5", vram_mb=200)) for n in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
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


async def test_a_disconnect_ends_the_generation(rig: NeuronRig, weights: Path):
    """When the client of the embedded engine goes, streaming or not, the engine stops computing."""
    async with rig.client() as client:
        ready = await load(client, tiny(weights, "tiny/gone"))
        for stream in (True, False):
            body = {
                "messages": [{"role": "user", "content": "x"}],
                "stream": stream,
                "max_tokens": 4000,
            }
            async with httpx.AsyncClient(base_url=ready.url or "", timeout=30) as http:
                asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
                async with asyncio.timeout(10):
                    while (await http.get("/health")).json()["running"] == 0:
                        pass
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                async with asyncio.timeout(1):
                    while (await http.get("/health")).json()["running"] > 0:
                        pass
        await client.unload(UnloadRequest(model_id="tiny/gone"))


async def test_events_begin_with_the_whole_status_and_follow_every_change(rig: NeuronRig):
    """A reader sees the instance appear, become ready and vanish, each time with all that there is."""
    seen: list[tuple[str, ...]] = []
    begun = asyncio.Event()

    async def follow() -> None:
        async with rig.client() as client:
            async for status in client.status_events():
                states = tuple(str(m.status) for m in status.models)
                if not seen or seen[-1] != states:
                    seen.append(states)
                begun.set()
                if len(seen) > 1 and not states:
                    return

    following = asyncio.create_task(follow())
    async with rig.client() as client:
        async with asyncio.timeout(5):
            await begun.wait()
        await load(client, fake("watched", "--listen-after", "0.2"))
        await client.unload(UnloadRequest(model_id="watched"))
    async with asyncio.timeout(5):
        await following
    assert seen[0] == ()
    assert ("loading",) in seen
    assert ("ready",) in seen
    assert seen[-1] == ()


async def test_events_tell_what_was_decided_and_resume(rig: NeuronRig):
    """Lifecycle entries come in order, and a reader that returns with its last id gets those that it missed."""

    async def read(last: str | None, enough: str) -> tuple[list[str], str]:
        headers = {"last-event-id": last} if last else {}
        names, number, kind = [], "", ""
        async with (
            asyncio.timeout(10),
            httpx.AsyncClient(base_url=rig.url) as http,
            http.stream("GET", "/events", headers=headers) as stream,
        ):
            async for line in stream.aiter_lines():
                key, _, value = line.partition(": ")
                number = value if key == "id" else number
                kind = value if key == "event" else kind
                if key == "data" and kind == "lifecycle":
                    names.append(json.loads(value)["event"])
                if key == "data" and enough in {kind, *names[-1:]}:
                    return names, number
        raise AssertionError(f"the stream ended: {names}")

    nothing, last = await read(None, "status")
    assert nothing == []
    async with rig.client() as client:
        await load(client, fake("noted"))
        await client.unload(UnloadRequest(model_id="noted"))
    story = [
        "load_admitted",
        "engine_started",
        "instance_ready",
        "unload_started",
        "instance_unloaded",
    ]
    assert (await read(last, "instance_unloaded"))[0] == story


async def test_metrics_show_devices_and_instances(rig: NeuronRig):
    """Prometheus gets the numbers of /health and the state of each instance."""
    async with rig.client() as client, httpx.AsyncClient(base_url=rig.url) as http:
        await load(client, fake("org/seen", instance_id="seen"))
        text = (await http.get("/metrics")).text
        assert 'cortex_neuron_device_memory_bytes{device="0",kind="available"} 8.388608e+08' in text
        names = 'instance="seen",model="org/seen"'
        assert f'cortex_neuron_instance_state{{{names},state="ready"}} 1.0' in text
        assert f"cortex_neuron_instance_memory_bytes{{{names}}} 1.048576e+08" in text
        await client.unload(UnloadRequest(model_id="org/seen"))


async def test_unload_waits_for_an_idle_engine(rig: NeuronRig, weights: Path):
    """A drained instance finishes its stream before it ends."""
    async with rig.client() as client:
        ready = await load(client, tiny(weights, "tiny/drain"))
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 500}
        async with httpx.AsyncClient(base_url=ready.url or "", timeout=30) as http:
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            async with asyncio.timeout(10):
                while (await http.get("/health")).json()["running"] == 0:
                    pass
            await client.unload(UnloadRequest(model_id="tiny/drain", drain_seconds=30))
            answer = await asking
        assert answer.json()["usage"]["completion_tokens"] == 500


async def test_sigterm_leaves_no_engine_behind(small: NeuronRig, weights: Path):
    """A neuron that is told to stop drains and ends its engines and exits with 0."""
    async with small.client() as client:
        await load(client, tiny(weights))
        await client.load(fake("loading", "--hang-at-load"))
        await load(client, fake("stubborn", "--ignore-term", "--child"))
        assert len(small.engines()) == 4
    assert await asyncio.to_thread(small.stop) == 0
    assert small.engines() == []


async def test_the_engine_survives_a_killed_neuron_and_is_adopted(small: NeuronRig, weights: Path):
    """Kill -9 of the neuron cuts no stream; the next neuron takes the engine over and can unload it."""
    async with small.client() as client:
        ready = await load(client, tiny(weights, "tiny/kept", instance_id="kept"))
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2500, "stream": True}
    async with httpx.AsyncClient(base_url=ready.url or "", timeout=30) as http:
        async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            assert await asyncio.to_thread(small.stop, signal.SIGKILL) == -signal.SIGKILL
            small.start()
            async with small.client() as client:
                models = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
            assert [m.instance_id for m in models] == ["kept"]
            assert models[0].url == ready.url
            assert models[0].status is InstanceState.READY
            rest = [line async for line in lines if line.startswith("data:")]
        assert rest[-1] == "data: [DONE]"
    async with small.client() as client:
        await client.unload(UnloadRequest(model_id="tiny/kept"))
        assert await client.models() == ()
    assert small.engines() == []


async def test_a_dead_neuron_is_an_error_of_its_own(tmp_path: Path):
    """Calling a neuron that is not there says who can't be reached."""
    rig = NeuronRig(tmp_path / "neuron").start()
    rig.stop()
    async with rig.client() as client:
        with pytest.raises(UpstreamFailed, match="node test"):
            await client.health()


async def test_a_state_directory_that_cant_be_written_stops_nothing(small: NeuronRig):
    """Engines are loaded and unloaded meanwhile, the host says so, and records are written once that is possible."""
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
        async with asyncio.timeout(10), contextlib.aclosing(client.status_events()) as events:
            async for _ in events:
                if not (await client.discovery()).warnings:
                    break
    written = [path.stem for path in records.iterdir()]
    assert written == [meanwhile.instance_id]
    assert before.instance_id not in written
