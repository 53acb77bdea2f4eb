"""The neuron's runtime on GPUs of a fake NVML, with engine processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from engines.fake_nvml import MIB, XID, FakeGpu, FakeNvml, failing
from engines.neuron_rig import FAKE_ENGINE, fake

from cortex_common.config.neuron import DeviceEntry, HarnessEntry, NeuronConfig, NeuronSection
from cortex_common.errors import DoesNotFit
from cortex_common.schema.instances import InstanceState, ModelInfo, UnloadRequest
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.hardware.sample import DeviceSource
from neuron_server.main import create_runtime
from neuron_server.process.process_table import environment
from neuron_server.runtime import Runtime

FIRST_PORT = 41000 + os.getpid() * 31 % 9000


class Memory:
    """A GPU's memory, which is released gradually after a process has ended."""

    def __init__(self, total_mb: int, used_mb: int = 0) -> None:
        self.total_mb = total_mb
        self.used_mb = used_mb
        self.releasing_mb = 0

    def read(self) -> SimpleNamespace:
        """Return the memory; a third of the memory being released is freed with each reading."""
        self.releasing_mb = self.releasing_mb * 2 // 3 if self.releasing_mb > 30 else 0
        used = (self.used_mb + self.releasing_mb) * MIB
        total = self.total_mb * MIB
        return SimpleNamespace(total=total, used=used, free=total - used)


class LiveGpu(FakeGpu):
    """A GPU whose memory the test changes."""

    def __init__(self, number: int, memory: Memory) -> None:
        super().__init__(number)
        self.memory = memory
        self.answers = Answers(self.answers, memory)


class Answers(dict[str, object]):
    """NVML answers with the current memory."""

    def __init__(self, answers: dict[str, object], memory: Memory) -> None:
        super().__init__(answers)
        self._memory = memory

    def __getitem__(self, field: str) -> object:
        return self._memory.read() if field == "MemoryInfo" else super().__getitem__(field)


@pytest.fixture
def gpus() -> list[LiveGpu]:
    """Provide a GPU partly used by other processes, and a free one."""
    return [LiveGpu(0, Memory(8000, used_mb=5000)), LiveGpu(1, Memory(8000))]


@pytest.fixture
async def runtime(tmp_path: Path, gpus: list[LiveGpu]) -> AsyncIterator[Runtime]:
    """Provide a running runtime on those GPUs."""
    async with opened(tmp_path, NvmlSource(FakeNvml(*gpus))) as runtime:
        yield runtime


@contextlib.asynccontextmanager
async def opened(
    directory: Path, *sources: DeviceSource, on_stop: Literal["stop", "keep"] = "stop"
) -> AsyncIterator[Runtime]:
    """Open a runtime on some devices."""
    command = (sys.executable, str(FAKE_ENGINE), "--host", "{host}", "--port", "{port}")
    entry = HarnessEntry(
        name="fake",
        kind="command",
        command=command,
        port_range=(FIRST_PORT, FIRST_PORT + 99),
        grows=False,
    )
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=directory / "state", on_stop=on_stop),
        devices=(DeviceEntry(uuid="GPU-1", headroom="1000MiB"),),
        harnesses=(entry,),
    )
    runtime = create_runtime(config, sources)
    await runtime.open()
    try:
        yield runtime
    finally:
        await runtime.close()


async def ready(runtime: Runtime, model: str) -> ModelInfo:
    """Wait until a model is ready."""
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            info = next(m for m in runtime.models(lambda _: "http://127.0.0.1:1") if m.id == model)
            assert info.status is not InstanceState.FAILED, info.error
            if info.status is InstanceState.READY:
                return info
    raise AssertionError


def engine_pid(runtime: Runtime) -> int:
    """Return the pid of the latest engine."""
    entries = [e.fields for _, e in runtime.events.since(0) if e.event == "engine_started"]
    return int(entries[-1]["pid"])


async def test_an_engine_sees_only_its_own_gpu(runtime: Runtime):
    """The GPU with enough memory is chosen, and passed to the engine by UUID, in bus order."""
    await runtime.load(fake("m", vram_mb=4000))
    info = await ready(runtime, "m")
    assert info.devices == (1,)
    variables = environment(engine_pid(runtime))
    assert b"CUDA_VISIBLE_DEVICES=GPU-1" in variables
    assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in variables


async def test_measured_memory_replaces_the_reservation(
    runtime: Runtime, gpus: list[LiveGpu], tmp_path: Path
):
    """Once loaded, an instance counts with its measured memory; headroom and other processes are separate."""
    started = tmp_path / "ready"
    await runtime.load(fake("m", "--ready-on", str(started), vram_mb=6000))
    before = runtime.health().devices
    assert before[0].vram_other_mb == 5000
    assert (before[1].vram_reserved_mb, before[1].vram_available_mb) == (6000, 1000)
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            if any(e.event == "engine_started" for _, e in runtime.events.since(0)):
                break
    process = SimpleNamespace(pid=engine_pid(runtime), usedGpuMemory=3500 * MIB)
    gpus[1].answers["ComputeRunningProcesses"] = [process]
    gpus[1].memory.used_mb = 3500
    started.touch()
    info = await ready(runtime, "m")
    assert (info.vram_used_mb, info.vram_by_device, info.vram_peak_mb) == (3500, (3500,), 3500)
    after = runtime.health().devices[1]
    assert (after.vram_reserved_mb, after.vram_other_mb) == (0, 0)
    assert after.vram_available_mb == 8000 - 3500 - 1000
    await runtime.load(fake("n", vram_mb=3000))
    with pytest.raises(DoesNotFit):
        await runtime.load(fake("o", vram_mb=3000))


async def test_unload_returns_once_the_driver_has_released_the_memory(
    runtime: Runtime, gpus: list[LiveGpu]
):
    """Memory counts as free when it is measured free, however long after the process has ended."""
    await runtime.load(fake("m", vram_mb=6000))
    await ready(runtime, "m")
    process = SimpleNamespace(pid=engine_pid(runtime), usedGpuMemory=6000 * MIB)
    gpus[1].answers["ComputeRunningProcesses"] = [process]
    gpus[1].memory.used_mb = 6000
    await runtime.measure()
    assert runtime.health().devices[1].vram_available_mb == 1000
    gpus[1].answers["ComputeRunningProcesses"] = []
    gpus[1].memory.used_mb, gpus[1].memory.releasing_mb = 0, 5900
    await runtime.unload(UnloadRequest(model_id="m"))
    assert gpus[1].memory.releasing_mb == 0
    assert runtime.health().devices[1].vram_available_mb == 7000


async def test_an_xid_is_an_event_and_a_lasting_warning(runtime: Runtime, gpus: list[LiveGpu]):
    """XIDs are recorded with the affected instances, and reported in the warnings of /discovery."""
    await runtime.load(fake("m", vram_mb=4000, instance_id="i"))
    await ready(runtime, "m")
    before = runtime.status(lambda _: "http://127.0.0.1:1").discovery
    gpus[1].events.extend([(XID, 48), (XID, 48), (XID, 31)])
    await runtime.measure()
    fields = [e.fields for _, e in runtime.events.since(0) if e.event == "xid_error"]
    assert [(t["device"], t["xid"], t["instances"]) for t in fields] == [
        ("1", "48", "i"),
        ("1", "48", "i"),
        ("1", "31", "i"),
    ]
    await runtime.measure()
    (warning,) = runtime.discovery().warnings  # XID 31 is caused by the engine
    assert warning.code == "xid_error"
    assert "GPU 1 (Card 1): XID 48, 2 times" in warning.message
    assert runtime.status(lambda _: "http://127.0.0.1:1").discovery != before


def oom_score(pid: int | str) -> int:
    """Return the value that a process is favored or protected with when memory runs out."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.fixture
def adjusted_score() -> Iterator[None]:
    """Adjust the score of this process, in which the neuron runs, as its unit does."""
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("100")
    yield
    own.write_text(before)


@pytest.mark.usefixtures("adjusted_score")
async def test_engines_do_not_inherit_the_neurons_oom_score(runtime: Runtime):
    """The unit protects the neuron from the OOM killer, and not the engines that use the memory."""
    await runtime.load(fake("m"))
    await ready(runtime, "m")
    assert oom_score("self") == 100
    assert oom_score(engine_pid(runtime)) == 0


async def test_failed_loads_leave_no_tasks_behind(runtime: Runtime):
    """A load that hangs and is unloaded, and one whose engine runs out of memory, end all that they started."""
    before = {task.get_name() for task in asyncio.all_tasks()}
    await runtime.load(fake("hangs", "--hang-at-load"))
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            if any(e.event == "engine_started" for _, e in runtime.events.since(0)):
                break
    await runtime.unload(UnloadRequest(model_id="hangs"))
    await runtime.load(fake("greedy", "--oom-at-load"))
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            if runtime.models(lambda _: "")[0].status is InstanceState.FAILED:
                break
        while {task.get_name() for task in asyncio.all_tasks()} - before:
            await asyncio.sleep(0)


async def test_instances_on_a_gpu_that_fell_off_the_bus_are_out_of_service(
    runtime: Runtime, gpus: list[LiveGpu]
):
    """They fail with the reason at the next reading, their engine is stopped, and none is started there again."""
    await runtime.load(fake("m", vram_mb=4000))
    await ready(runtime, "m")
    pid = engine_pid(runtime)
    gpus[1].answers["UtilizationRates"] = failing(15)
    await runtime.measure()
    (info,) = runtime.models(lambda _: "http://127.0.0.1:1")
    assert info.url is None
    async with asyncio.timeout(60):
        async for _ in runtime.changes.subscribe(1.0):
            (info,) = runtime.models(lambda _: "http://127.0.0.1:1")
            if info.status is InstanceState.FAILED:
                break
    assert info.error == "GPU 1 is lost: NVML error 15"
    assert engine_pid(runtime) == pid
    assert environment(pid) == ()
    with pytest.raises(DoesNotFit):
        await runtime.load(fake("m", vram_mb=4000))


async def test_a_lost_gpu_and_its_xid_are_warnings(runtime: Runtime, gpus: list[LiveGpu]):
    """A GPU that has fallen off the bus is reported with its XID, and has no available memory."""
    gpus[1].events.append((XID, 79))
    gpus[1].answers["UtilizationRates"] = failing(15)
    await runtime.measure()
    assert [w.code for w in runtime.discovery().warnings] == ["gpu_lost", "xid_error"]
    assert runtime.health().devices[1].vram_available_mb == 0


async def test_a_loss_and_a_recovery_are_recorded_once_each(runtime: Runtime, gpus: list[LiveGpu]):
    """Both are events of their own, because not every loss has an XID."""
    busy = gpus[1].answers["UtilizationRates"]
    for answer in (failing(15), failing(15), busy, busy):
        gpus[1].answers["UtilizationRates"] = answer
        await runtime.measure()
    events = [e for _, e in runtime.events.since(0) if e.event.startswith("gpu_")]
    assert [(e.event, e.fields["device"]) for e in events] == [
        ("gpu_lost", "1"),
        ("gpu_recovered", "1"),
    ]


async def test_two_devices_are_granted_together(runtime: Runtime, gpus: list[LiveGpu]):
    """A model on two devices needs the memory on each of them."""
    with pytest.raises(DoesNotFit, match="each of 2 devices"):
        await runtime.load(fake("wide", vram_mb=4000, tensor_parallel=2))
    gpus[0].memory.used_mb = 0
    await runtime.load(fake("wide", vram_mb=4000, tensor_parallel=2))
    info = await ready(runtime, "wide")
    assert info.devices == (0, 1)
    assert b"CUDA_VISIBLE_DEVICES=GPU-0,GPU-1" in environment(engine_pid(runtime))


async def test_a_unified_gpu_and_the_cpu_device_share_the_hosts_memory(tmp_path: Path):
    """A grant on the GPU reduces the available memory of the cpu device too."""
    source = NvmlSource(FakeNvml(FakeGpu(0, MemoryInfo=3, BAR1MemoryInfo=failing(3))))
    async with opened(tmp_path, source, CpuSource(None)) as runtime:
        gpu, cpu = runtime.health().devices
        half = min(gpu.vram_available_mb, cpu.vram_available_mb) // 2
        await runtime.load(fake("m", "--hang-at-load", vram_mb=half, devices=(0,)))
        after = runtime.health().devices[1]
        assert after.vram_reserved_mb == 0
        assert after.vram_available_mb < cpu.vram_available_mb - half // 2
        with pytest.raises(DoesNotFit):
            await runtime.load(fake("n", vram_mb=cpu.vram_available_mb, devices=(1,)))
        await runtime.load(fake("n", vram_mb=1, devices=(1,)))
        assert (await ready(runtime, "n")).devices == (1,)


async def test_an_adopted_engine_stays_on_its_gpu_when_indices_change(tmp_path: Path):
    """After a restart with one GPU missing, an adopted engine is on its own GPU, not on the one with its old index."""
    gpus = [LiveGpu(n, Memory(8000)) for n in range(3)]
    async with opened(tmp_path, NvmlSource(FakeNvml(*gpus)), on_stop="keep") as before:
        for number in (0, 1, 2):
            await before.load(fake(f"on-{number}", devices=(number,)))
            assert (await ready(before, f"on-{number}")).devices == (number,)
    async with opened(tmp_path, NvmlSource(FakeNvml(gpus[0], gpus[2]))) as after:
        await ready(after, "on-2")
        found = {m.id: m.devices for m in after.models(lambda _: "http://127.0.0.1:1")}
        assert found == {"on-0": (0,), "on-2": (1,)}
