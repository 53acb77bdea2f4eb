"""A neuron with llama-server."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines.build_llama import find
from engines.neuron_rig import NeuronRig, lines_of, load, running, until

from cortex_common.errors import BadRequest
from cortex_common.schema.instances import InstanceState, LoadSpec, ModelInfo, UnloadRequest
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

BINARY = find()
pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(BINARY is None, reason="no llama-server: run make engines"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a 2 MB model."""
    return write_tiny_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", seed=5)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron with a llama.cpp harness."""
    llama = f'[[harnesses]]\nname = "llamacpp"\nbinary = "{BINARY}"\n'
    rig = NeuronRig(tmp_path / "neuron")
    rig.config.write_text(
        rig.config.read_text() + llama + f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    )
    yield from running(rig)


def llama(weights: Path, model: str, **more: object) -> LoadSpec:
    """Return a spec for llama.cpp."""
    # With several threads each, engines would stall one another on a host with two cores.
    one_thread = ("-t", "1")
    spec = {"model_id": model, "harness": "llamacpp", "source": str(weights), "args": one_thread}
    return LoadSpec.model_validate(spec | more)


async def test_llama_server_is_started_queried_and_unloaded(rig: NeuronRig, weights: Path):
    """Context, slots and version are read from the engine."""
    async with rig.client() as client:
        spec = llama(weights, "org/llama", context=1024, parallel=2)
        ready = await load(client, spec)
        assert ready.context == 1024
        assert ready.parallel == 2
        assert (ready.engine_version or "").startswith("llama.cpp ")
        first = asyncio.Event()
        data = await lines_of(ready, 20, first)
        assert data[-1] == "[DONE]"
        assert json.loads(data[0])["model"] == "org/llama"
        await client.unload(UnloadRequest(model_id="org/llama"))
        assert await client.models() == ()


async def test_a_drained_llama_server_finishes_its_stream(rig: NeuronRig, weights: Path):
    """Unload with drain_seconds waits until the engine's slots are idle."""
    async with rig.client() as client:
        ready = await load(client, llama(weights, "drained", context=4096, parallel=1))
        first = asyncio.Event()
        streaming = asyncio.create_task(lines_of(ready, 1000, first))
        await asyncio.wait_for(first.wait(), 60)
        await client.unload(UnloadRequest(model_id="drained", drain_seconds=60))
        assert (await streaming)[-1] == "[DONE]"


async def test_invalid_arguments_are_reported_with_the_engines_output(
    rig: NeuronRig, weights: Path
):
    """An engine that rejects its arguments is a failed instance with that error, and is not restarted."""
    async with rig.client() as client:
        await client.load(llama(weights, "wrong", args=("--no-such-flag",)))
        models = await until(client, lambda ms: bool(ms) and ms[0].status == "failed")
        assert "no-such-flag" in (models[0].error or "")
        assert "did not accept its arguments" in (models[0].error or "")
        assert (await client.health()).devices[0].vram_reserved_mb == 0
        with pytest.raises(BadRequest, match="exactly one matching GGUF"):
            await client.load(llama(weights.parent.parent, "nothing", file=None))


def engine_of(rig: NeuronRig, model: ModelInfo) -> psutil.Process:
    """Return the engine process of an instance."""
    return next(p for p in rig.engines() if p.environ()["CORTEX_INSTANCE"] == model.instance_id)


async def test_three_streams_survive_a_killed_neuron(rig: NeuronRig, weights: Path):
    """Two llama-servers and an embedded engine outlive their neuron; the next one adopts and unloads them."""
    async with rig.client() as client:
        ready = [
            await load(client, llama(weights, "one", context=4096, parallel=1)),
            await load(client, llama(weights, "two", context=4096, parallel=1)),
            await load(client, LoadSpec(model_id="three", harness="embedded", source=str(weights))),
        ]
    streams: list[asyncio.Task[list[str]]] = []
    for model, tokens in zip(
        ready, (1500, 1500, 3500), strict=True
    ):  # the third engine is the fastest
        first = asyncio.Event()
        streams.append(asyncio.create_task(lines_of(model, tokens, first)))
        await asyncio.wait_for(first.wait(), 60)
        # Suspended, so that no stream ends before the neuron, however slow the host.
        engine_of(rig, model).suspend()
    assert await asyncio.to_thread(rig.stop, signal.SIGKILL) == -signal.SIGKILL
    assert not any(stream.done() for stream in streams)
    for engine in rig.engines():
        engine.resume()
    await asyncio.to_thread(rig.start)
    async with rig.client() as client:
        models = await until(
            client, lambda ms: len(ms) == 3 and all(m.status is InstanceState.READY for m in ms)
        )
        assert {m.instance_id: m.url for m in models} == {m.instance_id: m.url for m in ready}
        assert {m.id: m.load_seconds for m in models} == {m.id: m.load_seconds for m in ready}
        for data in await asyncio.gather(*streams):
            assert data[-1] == "[DONE]"
        for model in ready:
            await client.unload(UnloadRequest(model_id=model.id))
        assert await client.models() == ()
    assert rig.engines() == []
