"""A neuron's runtime on GPUs that a fake NVML shows, with real engine processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from engines.fake_nvml import MIB, XID, Card, FakeNvml, failing
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
    """A card's memory: what is used, and how it comes back after its user has ended."""

    def __init__(self, total_mb: int, used_mb: int = 0) -> None:
        self.total_mb = total_mb
        self.used_mb = used_mb
        self.leaving_mb = 0

    def read(self) -> SimpleNamespace:
        """Like a driver's: each reading finds a third of what is leaving gone."""
        self.leaving_mb = self.leaving_mb * 2 // 3 if self.leaving_mb > 30 else 0
        used = (self.used_mb + self.leaving_mb) * MIB
        total = self.total_mb * MIB
        return SimpleNamespace(total=total, used=used, free=total - used)


class LiveCard(Card):
    """A card whose memory the test moves."""

    def __init__(self, number: int, memory: Memory) -> None:
        super().__init__(number)
        self.memory = memory
        self.answers = Answers(self.answers, memory)


class Answers(dict[str, object]):
    """Answers with live memory."""

    def __init__(self, answers: dict[str, object], memory: Memory) -> None:
        super().__init__(answers)
        self._memory = memory

    def __getitem__(self, field: str) -> object:
        return self._memory.read() if field == "MemoryInfo" else super().__getitem__(field)


@pytest.fixture
def cards() -> list[LiveCard]:
    """One card half full of strangers, one free."""
    return [LiveCard(0, Memory(8000, used_mb=5000)), LiveCard(1, Memory(8000))]


@pytest.fixture
async def runtime(tmp_path: Path, cards: list[LiveCard]) -> AsyncIterator[Runtime]:
    """A running runtime on those cards."""
    async with opened(tmp_path, NvmlSource(FakeNvml(*cards))) as found:
        yield found


@contextlib.asynccontextmanager
async def opened(
    directory: Path, *sources: DeviceSource, on_stop: Literal["stop", "keep"] = "stop"
) -> AsyncIterator[Runtime]:
    """A runtime on some devices."""
    command = (sys.executable, str(FAKE_ENGINE), "--host", "{host}", "--port", "{port}")
    entry = HarnessEntry(
        name="fake", kind="command", command=command, port_range=(FIRST_PORT, FIRST_PORT + 99)
    )
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=directory / "state", on_stop=on_stop),
        devices=(DeviceEntry(uuid="GPU-1", headroom="1000MiB"),),
        harnesses=(entry,),
    )
    found = create_runtime(config, sources)
    await found.open()
    try:
        yield found
    finally:
        await found.close()


async def ready(runtime: Runtime, model: str) -> ModelInfo:
    """Wait until a model is ready."""
    async with asyncio.timeout(20):
        async for _ in runtime.changes.subscribe(1.0):
            info = next(m for m in runtime.models(lambda _: "url") if m.id == model)
            assert info.status is not InstanceState.FAILED, info.error
            if info.status is InstanceState.READY:
                return info
    raise AssertionError


def engine_pid(runtime: Runtime) -> int:
    """The pid of the only engine."""
    entries = [e.facts for _, e in runtime.events.since(0) if e.event == "engine_started"]
    return int(entries[-1]["pid"])


async def test_an_engine_sees_its_own_gpu_only(runtime: Runtime):
    """The card with room is chosen, and given to the engine by UUID in bus order."""
    await runtime.load(fake("m", vram_mb=4000))
    info = await ready(runtime, "m")
    assert info.devices == (1,)
    seen = environment(engine_pid(runtime))
    assert b"CUDA_VISIBLE_DEVICES=GPU-1" in seen
    assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in seen


async def test_what_is_measured_replaces_what_was_promised(runtime: Runtime, cards: list[LiveCard]):
    """Once loaded, an engine counts with what NVML says about its processes; headroom and strangers stay out of it."""
    await runtime.load(fake("m", "--loading", "1", vram_mb=6000))
    before = runtime.health().devices
    assert before[0].vram_other_mb == 5000
    assert (before[1].vram_reserved_mb, before[1].vram_available_mb) == (6000, 1000)
    async with asyncio.timeout(10):
        async for _ in runtime.changes.subscribe(1.0):
            if any(e.event == "engine_started" for _, e in runtime.events.since(0)):
                break
    mine = SimpleNamespace(pid=engine_pid(runtime), usedGpuMemory=3500 * MIB)
    cards[1].answers["ComputeRunningProcesses"] = [mine]
    cards[1].memory.used_mb = 3500
    info = await ready(runtime, "m")
    assert (info.vram_used_mb, info.vram_by_device, info.vram_peak_mb) == (3500, (3500,), 3500)
    after = runtime.health().devices[1]
    assert (after.vram_reserved_mb, after.vram_other_mb) == (0, 0)
    assert after.vram_available_mb == 8000 - 3500 - 1000
    await runtime.load(fake("n", vram_mb=3000))
    with pytest.raises(DoesNotFit):
        await runtime.load(fake("o", vram_mb=3000))


async def test_unload_returns_once_the_driver_gave_the_memory_back(
    runtime: Runtime, cards: list[LiveCard]
):
    """Memory counts as free when it is measured free, however long after the process."""
    await runtime.load(fake("m", "--loading", "0.3", vram_mb=6000))
    await ready(runtime, "m")
    mine = SimpleNamespace(pid=engine_pid(runtime), usedGpuMemory=6000 * MIB)
    cards[1].answers["ComputeRunningProcesses"] = [mine]
    cards[1].memory.used_mb = 6000
    await runtime.measure()
    assert runtime.health().devices[1].vram_available_mb == 1000
    cards[1].answers["ComputeRunningProcesses"] = []
    cards[1].memory.used_mb, cards[1].memory.leaving_mb = 0, 5900
    await runtime.unload(UnloadRequest(model_id="m"))
    assert cards[1].memory.leaving_mb == 0
    assert runtime.health().devices[1].vram_available_mb == 7000


async def test_an_xid_of_a_card_is_told_and_stays_a_warning(
    runtime: Runtime, cards: list[LiveCard]
):
    """What the driver reports is in the journal with the instances there, and in the warnings of /discovery."""
    await runtime.load(fake("m", vram_mb=4000, instance_id="i"))
    await ready(runtime, "m")
    before = runtime.status(lambda _: "").discovery
    cards[1].events.extend([(XID, 48), (XID, 48), (XID, 31)])
    await runtime.measure()
    told = [e.facts for _, e in runtime.events.since(0) if e.event == "xid_error"]
    assert [(t["device"], t["xid"], t["instances"]) for t in told] == [
        ("1", "48", "i"),
        ("1", "48", "i"),
        ("1", "31", "i"),
    ]
    await runtime.measure()
    (warning,) = runtime.discovery().warnings  # 31 is the engine's own fault
    assert warning.code == "xid_error"
    assert "GPU 1 (Card 1): XID 48, 2 times" in warning.message
    assert runtime.status(lambda _: "").discovery != before


async def test_a_lost_card_and_its_xid_are_warnings(runtime: Runtime, cards: list[LiveCard]):
    """A card that falls off the bus is told with its error, and nothing is promised on it."""
    cards[1].events.append((XID, 79))
    cards[1].answers["UtilizationRates"] = failing(15)
    await runtime.measure()
    assert [w.code for w in runtime.discovery().warnings] == ["gpu_lost", "xid_error"]
    assert runtime.health().devices[1].vram_available_mb == 0


async def test_a_card_that_is_lost_and_comes_back_is_told_once_each(
    runtime: Runtime, cards: list[LiveCard]
):
    """Whoever looks in the morning sees when; not every loss has an XID error."""
    busy = cards[1].answers["UtilizationRates"]
    for answer in (failing(15), failing(15), busy, busy):
        cards[1].answers["UtilizationRates"] = answer
        await runtime.measure()
    told = [e for _, e in runtime.events.since(0) if e.event.startswith("gpu_")]
    assert [(e.event, e.facts["device"]) for e in told] == [
        ("gpu_lost", "1"),
        ("gpu_recovered", "1"),
    ]


async def test_two_devices_are_promised_together(runtime: Runtime, cards: list[LiveCard]):
    """A model over two devices needs the room on each of them."""
    with pytest.raises(DoesNotFit, match="each of 2 devices"):
        await runtime.load(fake("wide", vram_mb=4000, tensor_parallel=2))
    cards[0].memory.used_mb = 0
    await runtime.load(fake("wide", vram_mb=4000, tensor_parallel=2))
    info = await ready(runtime, "wide")
    assert info.devices == (0, 1)
    assert b"CUDA_VISIBLE_DEVICES=GPU-0,GPU-1" in environment(engine_pid(runtime))


async def test_a_unified_gpu_and_the_cpu_device_promise_the_hosts_memory_once(tmp_path: Path):
    """What a load is promised on the GPU is missing from the cpu device too."""
    card = NvmlSource(FakeNvml(Card(0, MemoryInfo=3)))
    async with opened(tmp_path, card, CpuSource(None)) as runtime:
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


async def test_an_engine_is_found_on_its_card_whatever_number_that_has(tmp_path: Path):
    """After a restart with a card less, an engine that was kept stands on its own card, not on that of its number."""
    cards = [LiveCard(n, Memory(8000)) for n in range(3)]
    async with opened(tmp_path, NvmlSource(FakeNvml(*cards)), on_stop="keep") as before:
        for number in (0, 1, 2):
            await before.load(fake(f"on-{number}", devices=(number,)))
            assert (await ready(before, f"on-{number}")).devices == (number,)
    async with opened(tmp_path, NvmlSource(FakeNvml(cards[0], cards[2]))) as after:
        await ready(after, "on-2")
        found = {m.id: m.devices for m in after.models(lambda _: "url")}
        assert found == {"on-0": (0,), "on-2": (1,)}
