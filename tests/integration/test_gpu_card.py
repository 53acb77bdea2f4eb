"""A neuron on a real NVIDIA card, with a llama-server built for CUDA: its numbers against nvidia-smi's.

Without a card, tests/unit/neuron_server/hardware/test_nvml.py and test_neuron_gpus.py use a fake NVML library.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from engines.build_llama import find
from engines.neuron_rig import NeuronRig, lines_of, load, running, until
from rigs.inprocess_gateway import running_gateway

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import DoesNotFit
from cortex_common.schema.hardware import DeviceReading
from cortex_common.schema.instances import InstanceState, LoadSpec, UnloadRequest
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

HOLDER = Path(__file__).parents[1] / "engines" / "holder.py"
NOISE_MB = 64
"""MiB that the driver may take or give back between two readings."""
KIB_PER_TOKEN = 52
"""KiB that a token of context takes with the weights here: 32 of keys and values, the rest for computing."""


def smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first card."""
    argv = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [field.strip() for field in printed.splitlines()[0].split(",")]


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver"),
]
needs_llama = pytest.mark.skipif(find() is None, reason="no llama-server: run make engines")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 240 MB whose context takes 32 KiB a token, and may have as many as any card holds."""
    path = tmp_path_factory.mktemp("weights") / "small.gguf"
    return write_tiny_gguf(path, layers=8, hidden=1024, feed_forward=1024, heads=8, context=1 << 22)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """A neuron with llama.cpp that offers the card alone."""
    rig = NeuronRig(tmp_path / "neuron")
    ports = f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    llama = f'[[harnesses]]\nname = "llamacpp"\nbinary = "{find()}"\n{ports}'
    rig.config.write_text(rig.config.read_text().replace("offer = true", "offer = false") + llama)
    yield from running(rig)


def spec(weights: Path, model: str, **more: object) -> LoadSpec:
    """A spec of llama.cpp."""
    said = {"model_id": model, "harness": "llamacpp", "source": str(weights), "context": 32768}
    return LoadSpec.model_validate(said | {"parallel": 1} | more)


async def reading(client: NeuronClient, used_mb: int | None = None) -> DeviceReading:
    """The card as the neuron sees it; with `used_mb`, once it is near that."""
    async with asyncio.timeout(30):
        async with contextlib.aclosing(client.watch_status()) as events:
            async for status in events:
                now = status.health.devices[0]
                if used_mb is None or abs(now.vram_used_mb - used_mb) <= NOISE_MB:
                    return now
    raise AssertionError


async def as_smi(client: NeuronClient, least_mb: int) -> tuple[DeviceReading, list[float]]:
    """The card as neuron and nvidia-smi see it, once both see the same memory in use, and so much at least.

    A neuron that has just started asks its engines what they run on, which takes memory of the card for a moment.

    Returns:
        The reading; and nvidia-smi's used and free MiB, degrees and watts.
    """
    async with asyncio.timeout(30):
        async with contextlib.aclosing(client.watch_status()) as events:
            async for status in events:
                now = status.health.devices[0]
                told = smi("memory.used", "memory.free", "temperature.gpu", "power.draw")
                numbers = [float(field) for field in told]
                if numbers[0] >= least_mb and abs(now.vram_used_mb - numbers[0]) <= NOISE_MB:
                    return now, numbers
    raise AssertionError


@contextlib.asynccontextmanager
async def stranger(size_mb: int) -> AsyncIterator[None]:
    """A process that the neuron did not start has memory of the card."""
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, str(HOLDER), str(size_mb)]
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert await process.stdout.readline() == b"held\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def test_discovery_names_the_card_as_the_driver_does(rig: NeuronRig):
    """UUID, name, memory, driver and compute capability are nvidia-smi's."""
    async with rig.client() as client:
        found = await client.discovery()
    [card] = found.devices
    told = smi("uuid", "name", "memory.total", "driver_version", "compute_cap")
    assert [
        card.uuid,
        card.name,
        str(card.vram_total_mb),
        found.driver_version,
        card.compute_capability,
    ] == told
    assert not card.unified
    assert not {w.code for w in found.warnings} & {
        "engine_cuda_mismatch",
        "nvml_failed",
        "gpu_lost",
    }


async def test_health_tells_nvidia_smis_numbers(rig: NeuronRig):
    """Memory, temperature and power, idle and with a stranger on the card, who counts as foreign."""
    async with rig.client() as client:
        idle = await reading(client)
        async with stranger(8192):
            held, numbers = await as_smi(client, idle.vram_used_mb + 8192)
            _, free, temperature, power = numbers
            assert abs(held.vram_free_mb - free) <= NOISE_MB
            assert abs((held.temp_c or 0) - temperature) <= 5
            assert held.power_w is not None
            assert abs(held.power_w - power) <= 60
            assert held.vram_other_mb == held.vram_used_mb
            assert held.vram_available_mb <= idle.vram_available_mb - 8192 + NOISE_MB
        await reading(client, idle.vram_used_mb)


@needs_llama
async def test_a_model_on_the_card_is_measured_and_its_memory_comes_back(
    rig: NeuronRig, weights: Path
):
    """It streams; what the driver says of its process is what it counts with, near the estimate; unload frees it."""
    async with rig.client() as client:
        before = await reading(client)
        await client.load(spec(weights, "m"))
        promised = (await client.health()).devices[0].vram_reserved_mb
        [ready] = await until(client, lambda ms: bool(ms) and ms[0].status in {"ready", "failed"})
        assert ready.status is InstanceState.READY, ready.error
        data = await lines_of(ready, 20, asyncio.Event())
        assert data[-1] == "[DONE]"
        taken = int(smi("memory.used")[0]) - before.vram_used_mb
        assert 1024 + 200 < taken <= promised * 1.1
        assert promised <= taken * 1.5
        # It takes a little more with its first answer, so an older reading does not do.
        now = await reading(client, before.vram_used_mb + taken)
        assert abs(now.vram_other_mb - before.vram_other_mb) <= NOISE_MB
        [ready] = await client.models()
        assert ready.devices == (0,)
        assert abs((ready.vram_used_mb or 0) - taken) <= NOISE_MB
        await client.unload(UnloadRequest(model_id="m"))
        after = await reading(client, before.vram_used_mb)
        assert after.vram_reserved_mb == 0
        assert rig.engines() == []


@needs_llama
async def test_of_twenty_loads_at_once_as_many_are_admitted_as_fit(rig: NeuronRig, weights: Path):
    """Each wants a fifth and more of the card: four get it, the others hear numbers that add up."""
    async with rig.client() as client:
        before = await reading(client)
        each = before.vram_available_mb // 5 + 1024
        answers = await asyncio.gather(
            *(client.load(spec(weights, f"m{n}", vram_mb=each)) for n in range(20)),
            return_exceptions=True,
        )
        refused = [a for a in answers if isinstance(a, BaseException)]
        assert all(isinstance(error, DoesNotFit) for error in refused), refused
        assert len(answers) - len(refused) == 4
        left = (await client.health()).devices[0]
        assert left.vram_available_mb == pytest.approx(
            before.vram_available_mb - 4 * each, abs=4 * NOISE_MB
        )
        await until(client, lambda ms: len(ms) == 4 and all(m.status == "ready" for m in ms), 60)
        for model in await client.models():
            await client.unload(UnloadRequest(model_id=model.id))
        assert (await reading(client, before.vram_used_mb)).vram_reserved_mb == 0


@needs_llama
async def test_a_stranger_who_takes_the_card_is_a_refusal_with_numbers(
    rig: NeuronRig, weights: Path
):
    """What somebody else took between plan and load is not promised away."""
    async with rig.client() as client:
        before = await reading(client)
        async with stranger(before.vram_free_mb - 3072):
            await as_smi(client, before.vram_free_mb - 3072)
            with pytest.raises(DoesNotFit) as refused:
                await client.load(spec(weights, "m", vram_mb=4096))
            assert "4096" in str(refused.value)


@needs_llama
async def test_a_stream_on_the_card_outlives_its_neuron(rig: NeuronRig, weights: Path):
    """After kill -9 the stream ends whole, the next neuron adopts the engine with its memory, and unloads it."""
    async with rig.client() as client:
        ready = await load(client, spec(weights, "m"))
    first = asyncio.Event()
    streaming = asyncio.create_task(lines_of(ready, 4000, first))
    await asyncio.wait_for(first.wait(), 20)
    assert await asyncio.to_thread(rig.stop, signal.SIGKILL) == -signal.SIGKILL
    assert not streaming.done()
    await asyncio.to_thread(rig.start)
    async with rig.client() as client:
        [adopted] = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
        assert adopted.instance_id == ready.instance_id
        assert adopted.devices == (0,)
        data = await streaming
        assert data[-1] == "[DONE]"
        now = (await client.health()).devices[0]
        assert now.vram_other_mb < now.vram_used_mb
        await client.unload(UnloadRequest(model_id="m"))
    assert rig.engines() == []


@needs_llama
async def test_three_models_take_turns_on_a_card_for_two(rig: NeuronRig, weights: Path):
    """Each wants two fifths of it: whoever is asked for answers, beside one other, and the numbers add up."""
    async with rig.client() as client:
        before = await reading(client)
        context = int(before.vram_available_mb * 0.4) * 1024 // KIB_PER_TOKEN
        model_configs = [
            ModelConfig(
                id=name, harness="llamacpp", source=str(weights), context=context, parallel=1
            )
            for name in "abc"
        ]
        async with (
            running_gateway(*model_configs, neurons={"card": rig.url}) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=90) as http,
        ):
            there = []
            for name in "abacb":
                said = [{"role": "user", "content": "go"}]
                body = {"model": name, "messages": said, "max_tokens": 8}
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                there.append({m.id for m in await client.models()})
            assert all(name in models for name, models in zip("abacb", there, strict=True))
            assert [len(models) for models in there] == [1, 2, 2, 2, 2]
        used = sum(m.vram_used_mb or 0 for m in await client.models())
        assert used > 0.7 * before.vram_available_mb
        for model in await client.models():
            await client.unload(UnloadRequest(model_id=model.id))
        assert (await reading(client, before.vram_used_mb)).vram_reserved_mb == 0
