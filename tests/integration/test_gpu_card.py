"""A neuron with a real NVIDIA GPU and a CUDA llama-server, compared with nvidia-smi.

For hosts without a GPU, tests/unit/neuron_server/hardware/test_nvml.py and test_neuron_gpus.py use a fake NVML library.
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
"""MiB that the driver can allocate or free between two readings."""
KIB_PER_TOKEN = 52
"""KiB of memory per token of context with this model: 32 for keys and values, the rest for computation."""


def smi(*fields: str) -> list[str]:
    """Return fields that nvidia-smi reports for the first GPU."""
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
    """Provide a 240 MB model with 32 KiB per token of context, and a context larger than any GPU's memory."""
    path = tmp_path_factory.mktemp("weights") / "small.gguf"
    return write_tiny_gguf(path, layers=8, hidden=1024, feed_forward=1024, heads=8, context=1 << 22)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron with a llama.cpp harness that offers only the GPU."""
    rig = NeuronRig(tmp_path / "neuron")
    ports = f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    llama = f'[[harnesses]]\nname = "llamacpp"\nbinary = "{find()}"\n{ports}'
    rig.config.write_text(rig.config.read_text().replace("offer = true", "offer = false") + llama)
    yield from running(rig)


def spec(weights: Path, model: str, **more: object) -> LoadSpec:
    """Return a spec for llama.cpp."""
    fields = {"model_id": model, "harness": "llamacpp", "source": str(weights), "context": 32768}
    return LoadSpec.model_validate(fields | {"parallel": 1} | more)


async def reading(client: NeuronClient, used_mb: int | None = None) -> DeviceReading:
    """Return the neuron's reading of the GPU; with `used_mb`, once the used memory is near that."""
    async with asyncio.timeout(60):
        async with contextlib.aclosing(client.watch_status()) as events:
            async for status in events:
                current = status.health.devices[0]
                if used_mb is None or abs(current.vram_used_mb - used_mb) <= NOISE_MB:
                    return current
    raise AssertionError


async def as_smi(client: NeuronClient, least_mb: int) -> tuple[DeviceReading, list[float]]:
    """Return the readings of the neuron and of nvidia-smi, once both report at least `least_mb` of used memory.

    A neuron that has just started checks its engines, which allocates GPU memory for a moment.

    Returns:
        The neuron's reading; and nvidia-smi's used and free MiB, degrees Celsius and watts.
    """
    async with asyncio.timeout(60):
        async with contextlib.aclosing(client.watch_status()) as events:
            async for status in events:
                current = status.health.devices[0]
                fields = smi("memory.used", "memory.free", "temperature.gpu", "power.draw")
                numbers = [float(field) for field in fields]
                if numbers[0] >= least_mb and abs(current.vram_used_mb - numbers[0]) <= NOISE_MB:
                    return current, numbers
    raise AssertionError


@contextlib.asynccontextmanager
async def other_process(size_mb: int) -> AsyncIterator[None]:
    """Run a process that allocates GPU memory and was not started by the neuron."""
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, str(HOLDER), str(size_mb)]
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert await process.stdout.readline() == b"allocated\n"
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def test_discovery_reports_the_drivers_data(rig: NeuronRig):
    """UUID, name, memory, driver version and compute capability equal those of nvidia-smi."""
    async with rig.client() as client:
        discovery = await client.discovery()
    [gpu] = discovery.devices
    expected = smi("uuid", "name", "memory.total", "driver_version", "compute_cap")
    assert [
        gpu.uuid,
        gpu.name,
        str(gpu.vram_total_mb),
        discovery.driver_version,
        gpu.compute_capability,
    ] == expected
    assert not gpu.unified
    assert not {w.code for w in discovery.warnings} & {
        "engine_cuda_mismatch",
        "nvml_failed",
        "gpu_lost",
    }


async def test_health_matches_nvidia_smi(rig: NeuronRig):
    """Memory, temperature and power match, idle and with another process, whose memory is reported as other."""
    async with rig.client() as client:
        idle = await reading(client)
        async with other_process(8192):
            busy, numbers = await as_smi(client, idle.vram_used_mb + 8192)
            _, free, temperature, power = numbers
            assert abs(busy.vram_free_mb - free) <= NOISE_MB
            assert abs((busy.temp_c or 0) - temperature) <= 5
            assert busy.power_w is not None
            assert abs(busy.power_w - power) <= 60
            assert busy.vram_other_mb == busy.vram_used_mb
            assert busy.vram_available_mb <= idle.vram_available_mb - 8192 + NOISE_MB
        await reading(client, idle.vram_used_mb)


@needs_llama
async def test_a_model_on_the_gpu_is_measured_and_its_memory_is_freed(
    rig: NeuronRig, weights: Path
):
    """Its footprint is the memory of its process, near the estimate; the unload frees it."""
    async with rig.client() as client:
        before = await reading(client)
        await client.load(spec(weights, "m"))
        reserved = (await client.health()).devices[0].vram_reserved_mb
        [ready] = await until(client, lambda ms: bool(ms) and ms[0].status in {"ready", "failed"})
        assert ready.status is InstanceState.READY, ready.error
        data = await lines_of(ready, 20, asyncio.Event())
        assert data[-1] == "[DONE]"
        allocated = int(smi("memory.used")[0]) - before.vram_used_mb
        assert 1024 + 200 < allocated <= reserved * 1.1
        assert reserved <= allocated * 1.5
        # Its first answer allocates a little more, so an older reading can't be used.
        current = await reading(client, before.vram_used_mb + allocated)
        assert abs(current.vram_other_mb - before.vram_other_mb) <= NOISE_MB
        [ready] = await client.models()
        assert ready.devices == (0,)
        assert abs((ready.vram_used_mb or 0) - allocated) <= NOISE_MB
        await client.unload(UnloadRequest(model_id="m"))
        after = await reading(client, before.vram_used_mb)
        assert after.vram_reserved_mb == 0
        assert rig.engines() == []


@needs_llama
async def test_of_twenty_concurrent_loads_as_many_are_admitted_as_fit(
    rig: NeuronRig, weights: Path
):
    """Each needs more than a fifth of the GPU: four are admitted, and the numbers of the refusals add up."""
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
        after = (await client.health()).devices[0]
        assert after.vram_available_mb == pytest.approx(
            before.vram_available_mb - 4 * each, abs=4 * NOISE_MB
        )
        await until(client, lambda ms: len(ms) == 4 and all(m.status == "ready" for m in ms), 60)
        for model in await client.models():
            await client.unload(UnloadRequest(model_id=model.id))
        assert (await reading(client, before.vram_used_mb)).vram_reserved_mb == 0


@needs_llama
async def test_memory_of_another_process_is_not_granted(rig: NeuronRig, weights: Path):
    """Memory that another process allocated between plan and load is not granted."""
    async with rig.client() as client:
        before = await reading(client)
        async with other_process(before.vram_free_mb - 3072):
            await as_smi(client, before.vram_free_mb - 3072)
            with pytest.raises(DoesNotFit) as refused:
                await client.load(spec(weights, "m", vram_mb=4096))
            assert "4096" in str(refused.value)


@needs_llama
async def test_a_stream_on_the_gpu_outlives_its_neuron(rig: NeuronRig, weights: Path):
    """The stream is complete, and the next neuron adopts the engine with its memory and unloads it."""
    async with rig.client() as client:
        ready = await load(client, spec(weights, "m"))
    first = asyncio.Event()
    streaming = asyncio.create_task(lines_of(ready, 4000, first))
    await asyncio.wait_for(first.wait(), 60)
    (engine,) = rig.engines()
    engine.suspend()  # so that the stream does not end before the neuron
    assert await asyncio.to_thread(rig.stop, signal.SIGKILL) == -signal.SIGKILL
    assert not streaming.done()
    engine.resume()
    await asyncio.to_thread(rig.start)
    async with rig.client() as client:
        [adopted] = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
        assert adopted.instance_id == ready.instance_id
        assert adopted.devices == (0,)
        data = await streaming
        assert data[-1] == "[DONE]"
        current = (await client.health()).devices[0]
        assert current.vram_other_mb < current.vram_used_mb
        await client.unload(UnloadRequest(model_id="m"))
    assert rig.engines() == []


@needs_llama
async def test_three_models_take_turns_on_a_gpu_for_two(rig: NeuronRig, weights: Path):
    """Each needs two fifths of it: the requested model is loaded, next to one other, and the numbers add up."""
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
            running_gateway(*model_configs, neurons={"gpu": rig.url}) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=90) as http,
        ):
            loaded = []
            for name in "abacb":
                messages = [{"role": "user", "content": "go"}]
                body = {"model": name, "messages": messages, "max_tokens": 8}
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                loaded.append({m.id for m in await client.models()})
            assert all(name in models for name, models in zip("abacb", loaded, strict=True))
            assert [len(models) for models in loaded] == [1, 2, 2, 2, 2]
        used = sum(m.vram_used_mb or 0 for m in await client.models())
        assert used > 0.7 * before.vram_available_mb
        for model in await client.models():
            await client.unload(UnloadRequest(model_id=model.id))
        assert (await reading(client, before.vram_used_mb)).vram_reserved_mb == 0
