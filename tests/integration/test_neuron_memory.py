"""The neuron's memory over the life of engines: learned sizes, restarts, and drivers that attribute nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from engines.fake_nvml import FakeNvml
from engines.neuron_rig import FAKE_ENGINE, fake
from engines.process_gpus import ProcessGpu

from cortex_common.config.neuron import HarnessEntry, MemorySection, NeuronConfig, NeuronSection
from cortex_common.errors import DoesNotFit
from cortex_common.schema.instances import InstanceState, ModelInfo, UnloadRequest
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.main import create_runtime
from neuron_server.runtime import Runtime

FIRST_PORT = 43000 + os.getpid() * 31 % 9000
CONTAINER = (sys.executable, str(FAKE_ENGINE.with_name("fake_container.py")))
COMMAND = (sys.executable, str(FAKE_ENGINE), "--host", "{host}", "--port", "{port}")


@pytest.fixture
def gpu() -> ProcessGpu:
    """Provide a GPU of 10,000 MiB."""
    return ProcessGpu(0, 10_000)


@pytest.fixture
async def runtime(tmp_path: Path, gpu: ProcessGpu) -> AsyncIterator[Runtime]:
    """Provide a running runtime on that GPU, with 1,000 MiB of headroom."""
    ports = (FIRST_PORT, FIRST_PORT + 99)
    entries = (
        HarnessEntry(name="fake", kind="command", command=COMMAND, port_range=ports, grows=False),
        HarnessEntry(name="growing", kind="command", command=COMMAND, port_range=ports),
        HarnessEntry(
            name="sized",
            kind="command",
            command=(*COMMAND, "--gpu-share", "{vram_share}"),
            port_range=ports,
            grows=False,
        ),
        HarnessEntry(
            name="contained",
            kind="command",
            command=(*CONTAINER, "run", "c-{port}", "--host", "{host}", "--port", "{port}"),
            stop_command=(*CONTAINER, "stop", "c-{port}"),
            pid_command=(*CONTAINER, "pid", "c-{port}"),
            env={"CONTAINERS": str(tmp_path)},
            port_range=ports,
        ),
    )
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=tmp_path / "state"),
        memory=MemorySection(headroom="1000MiB"),
        harnesses=entries,
    )
    runtime = create_runtime(config, (NvmlSource(FakeNvml(gpu)),))
    await runtime.open()
    try:
        yield runtime
    finally:
        await runtime.close()


def find(runtime: Runtime, model: str) -> ModelInfo:
    """Return a model's instance."""
    return next(m for m in runtime.models(lambda _: "http://127.0.0.1:1") if m.id == model)


async def until(runtime: Runtime, model: str, true: Callable[[ModelInfo], bool]) -> ModelInfo:
    """Wait until a model's instance meets a condition."""
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            if true(info := find(runtime, model)):
                return info
    raise AssertionError


async def ready(runtime: Runtime, model: str) -> ModelInfo:
    """Wait until a model is ready."""
    info = await until(runtime, model, lambda m: m.status in {"ready", "failed"})
    assert info.status is InstanceState.READY, info.error
    return info


async def failed(runtime: Runtime, model: str) -> ModelInfo:
    """Wait until a model has failed."""
    return await until(runtime, model, lambda m: m.status is InstanceState.FAILED)


async def test_what_an_engine_is_told_does_not_grow_with_what_it_takes(runtime: Runtime):
    """An engine that uses 700 MiB beyond its share gets the same share with every load, and never refused."""
    for _ in range(4):
        await runtime.load(fake("m", "--gpu-mb", "700", harness="sized", vram_mb=7300))
        info = await ready(runtime, "m")
        assert (info.vram_budget_mb, info.vram_measured_mb) == (7300, (8000,))
        await runtime.unload(UnloadRequest(model_id="m"))
    await runtime.load(fake("m", "--gpu-mb", "700", harness="sized", vram_mb=3000))
    lowered = await ready(runtime, "m")
    assert (lowered.vram_granted_mb, lowered.vram_budget_mb) == (3000, 3000)


async def test_a_measured_size_is_reserved_by_the_next_load(runtime: Runtime):
    """The second load reserves what the first one took, although less is configured."""
    await runtime.load(fake("m", "--gpu-mb", "5000", vram_mb=2000))
    await ready(runtime, "m")
    await runtime.unload(UnloadRequest(model_id="m"))
    await runtime.load(fake("m", "--gpu-mb", "5000", vram_mb=2000))
    info = await ready(runtime, "m")
    assert (info.vram_granted_mb, info.vram_budget_mb) == (5000, 2000)
    await runtime.unload(UnloadRequest(model_id="m"))
    assert runtime.forget_size("m")
    await runtime.load(fake("m", "--gpu-mb", "5000", vram_mb=2000))
    assert (await ready(runtime, "m")).vram_granted_mb == 2000


async def test_out_of_memory_raises_the_reservation(runtime: Runtime):
    """The next load asks for more than the grant with which the engine ran out of memory."""
    await runtime.load(fake("m", "--oom-at-load", vram_mb=4000))
    info = await failed(runtime, "m")
    assert info.failure == "out_of_memory"
    await runtime.load(fake("n", "--gpu-mb", "5000", vram_mb=5000))
    await ready(runtime, "n")
    with pytest.raises(DoesNotFit) as refused:
        await runtime.load(fake("m", "--oom-at-load", vram_mb=4000))
    assert refused.value.details["needed_mb"] == 4001


async def test_an_engine_without_a_known_size_takes_a_whole_device(runtime: Runtime):
    """It is refused, with the size to make free, while another model holds a good part of the device."""
    await runtime.load(fake("a", "--gpu-mb", "2000", vram_mb=2000))
    await ready(runtime, "a")
    with pytest.raises(DoesNotFit) as refused:
        await runtime.load(fake("org/b", vram_mb=None, env={"HF_HUB_OFFLINE": "1"}))
    assert refused.value.details["needed_mb"] == 8100
    await runtime.unload(UnloadRequest(model_id="a"))
    await runtime.load(fake("org/b", vram_mb=None, env={"HF_HUB_OFFLINE": "1"}))
    assert (await ready(runtime, "org/b")).vram_granted_mb == 9000


async def test_a_restart_after_a_crash_does_not_take_what_others_were_granted(
    runtime: Runtime, gpu: ProcessGpu, tmp_path: Path
):
    """Only what the crashed engine held stays reserved; if others took even that, the instance fails."""
    crash = tmp_path / "crash"
    await runtime.load(fake("m", "--gpu-mb", "3000", "--crash-on", str(crash), vram_mb=8000))
    await ready(runtime, "m")
    await runtime.load(fake("n", "--gpu-mb", "5000", vram_mb=5000))
    await ready(runtime, "n")
    crash.touch()
    await until(runtime, "m", lambda m: m.status is InstanceState.LOADING)
    (account,) = runtime.health().devices
    assert account.vram_reserved_mb <= 3000
    assert (await ready(runtime, "m")).vram_measured_mb == (3000,)


async def test_an_engine_that_grows_keeps_its_reservation(runtime: Runtime):
    """No other load is granted what it has not allocated yet, and a measurement does not lower the grant."""
    for _ in range(2):
        await runtime.load(fake("m", "--gpu-mb", "1000", harness="growing", vram_mb=6000))
        info = await ready(runtime, "m")
        assert (info.vram_granted_mb, info.vram_measured_mb, info.grows) == (6000, (1000,), True)
        assert runtime.health().devices[0].vram_available_mb == 3000
        await runtime.unload(UnloadRequest(model_id="m"))


async def test_a_promise_is_no_measurement(runtime: Runtime, gpu: ProcessGpu):
    """Without attribution by the driver, the rise of the device's use is the size; another change voids it."""
    gpu.attributes = False
    await runtime.load(fake("m", "--gpu-mb", "1500", vram_mb=6000))
    info = await ready(runtime, "m")
    assert (info.vram_granted_mb, info.vram_measured_mb) == (6000, (1500,))
    gpu.other_mb = 3000
    await runtime.load(fake("n", vram_mb=1000))
    gpu.other_mb = 0
    assert (await ready(runtime, "n")).vram_measured_mb == ()


async def test_memory_is_measured_before_it_is_granted(runtime: Runtime, gpu: ProcessGpu):
    """What another process took since the last reading is not granted."""
    await runtime.measure()
    gpu.other_mb = 7000
    with pytest.raises(DoesNotFit):
        await runtime.load(fake("m", vram_mb=3000))


async def test_engines_that_size_themselves_start_one_at_a_time(runtime: Runtime, tmp_path: Path):
    """The second waits, with a reason, until the first is ready; other devices are not concerned."""
    go = tmp_path / "go"
    await runtime.load(fake("a", "--listen-on", str(go), vram_mb=1000))
    await runtime.load(fake("b", vram_mb=1000))
    waiting = await until(runtime, "b", lambda m: bool(m.stage and m.stage.startswith("waiting")))
    assert waiting.status is InstanceState.LOADING
    started = [e.fields["model"] for _, e in runtime.events.since(0) if e.event == "engine_started"]
    assert started == ["a"]
    go.touch()
    await asyncio.gather(ready(runtime, "a"), ready(runtime, "b"))


async def test_a_waiting_load_can_be_cancelled(runtime: Runtime, tmp_path: Path):
    """Unloading it, or the one that it waits for, leaves no turn behind."""
    go = tmp_path / "go"
    await runtime.load(fake("a", "--listen-on", str(go), vram_mb=1000))
    await runtime.load(fake("b", vram_mb=1000))
    await runtime.load(fake("c", vram_mb=1000))
    await runtime.unload(UnloadRequest(model_id="b"))
    await runtime.unload(UnloadRequest(model_id="a"))
    await ready(runtime, "c")


async def test_an_engine_in_a_container_is_measured_and_stopped(
    runtime: Runtime, gpu: ProcessGpu, tmp_path: Path
):
    """Its processes are no children of the command, and end with the stop command."""
    await runtime.load(fake("m", harness="contained", vram_mb=6000))
    await ready(runtime, "m")
    pid = contained_pid(tmp_path)
    assert pid is not None
    engine = runtime.instances.find("m")[0].runner.engine
    assert engine is not None
    assert engine.container is not None
    assert engine.container.pid == pid
    gpu.containers = {pid: 2500}
    await runtime.measure()
    assert find(runtime, "m").vram_measured_mb == (2500,)
    gpu.containers = {}
    await runtime.unload(UnloadRequest(model_id="m"))
    assert not psutil.pid_exists(pid)
    assert contained_pid(tmp_path) is None


def contained_pid(directory: Path) -> int | None:
    """Return the pid of the engine in a container; None if there is none."""
    file = next(directory.glob("c-*"), None)
    return None if file is None else int(file.read_text())
