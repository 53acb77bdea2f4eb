"""GPU states that no single machine can show, through a fake NVML library."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import psutil
import pytest
from engines.fake_nvml import MIB, XID, FakeGpu, FakeNvml, failing
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.clock import ManualClock, SystemClock
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.schema.instances import InstanceId
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.hardware.xid import describe_xid
from neuron_server.harness.probe import device_environment

INSTANCE = InstanceId("i")


def single_gpu(**answers) -> tuple[NvmlSource, FakeNvml]:
    """Return a source with one GPU, and its library."""
    library = FakeNvml(FakeGpu(0, **answers))
    source = NvmlSource(library)
    source.inventory()
    return source, library


def test_gpus_are_listed_with_the_drivers_data():
    """Index, UUID, name, memory, compute capability and versions come from NVML."""
    inventory = NvmlSource(FakeNvml(FakeGpu(0), FakeGpu(1))).inventory()
    assert [d.uuid for d in inventory.devices] == ["GPU-0", "GPU-1"]
    assert inventory.devices[1].index == 1
    assert inventory.devices[0].vram_total_mb == 8000
    assert inventory.devices[0].compute_capability == "9.0"
    assert (inventory.driver_version, inventory.cuda_version) == ("580.126.09", "13.1")
    assert inventory.warnings == ()


def test_a_sample_has_memory_utilization_temperature_and_power():
    """MiB, percent, degrees Celsius and watts, as nvidia-smi shows them."""
    source, _ = single_gpu()
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2000, 6000)
    assert (sample.utilization_pct, sample.temp_c, sample.power_w) == (42, 55, 123.456)
    assert sample.health is DeviceHealth.OK


def test_memory_reserved_by_the_driver_is_not_used():
    """As in nvidia-smi, with the same rounding; a driver before 510 does not report it separately."""
    inclusive = SimpleNamespace(
        total=8000 * MIB, free=5399 * MIB + MIB // 2, used=2600 * MIB + MIB // 2
    )
    exclusive = SimpleNamespace(**vars(inclusive) | {"used": 2000 * MIB})
    source, _ = single_gpu(MemoryInfo=inclusive, MemoryInfo_v2=exclusive)
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2000, 5400)
    source, _ = single_gpu(MemoryInfo=inclusive, MemoryInfo_v2=13)
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2601, 5400)


@pytest.mark.parametrize("code", [12, 9, 18, 999])
def test_a_missing_driver_is_not_an_error(code):
    """A missing library, an unloaded module and a mismatch result in no devices, and a warning if a driver exists."""
    source = NvmlSource(FakeNvml(init=code))
    inventory = source.inventory()
    assert inventory.devices == ()
    codes = {
        12: [],
        9: ["driver_not_loaded"],
        18: ["driver_library_mismatch"],
        999: ["nvml_failed"],
    }
    assert [w.code for w in inventory.warnings] == codes[code]
    assert source.sample({}) == ()
    source.close()


def test_without_pynvml_there_are_no_gpus():
    """A host without nvidia-ml-py has no GPUs."""
    assert NvmlSource(None).inventory().devices == ()


def test_an_unsupported_field_is_none():
    """NotSupported for a field does not affect the device's health."""
    source, _ = single_gpu(
        UtilizationRates=failing(3), Temperature=failing(3), PowerUsage=failing(4)
    )
    (sample,) = source.sample({})
    assert (sample.utilization_pct, sample.temp_c, sample.power_w) == (None, None, None)
    assert sample.health is DeviceHealth.OK


@pytest.mark.parametrize(
    "failure", [failing(15), failing(16), failing(999), RuntimeError("mismatch")]
)
def test_a_lost_gpu_does_not_affect_others(failure):
    """A GPU that has fallen off the bus is lost with no free memory; the other GPU is still read."""
    source = NvmlSource(FakeNvml(FakeGpu(0, UtilizationRates=failure), FakeGpu(1)))
    source.inventory()
    lost, fine = source.sample({})
    assert lost.health is DeviceHealth.LOST
    assert lost.free_mb == 0
    assert lost.reason
    assert fine.health is DeviceHealth.OK


def test_a_gpu_that_does_not_respond_at_start_is_a_warning():
    """Enumeration continues without it."""
    inventory = NvmlSource(FakeNvml(FakeGpu(0, UUID=15), FakeGpu(1))).inventory()
    assert [d.uuid for d in inventory.devices] == ["GPU-1"]
    assert [w.code for w in inventory.warnings] == ["gpu_lost"]


def test_unified_memory_is_the_hosts():
    """If NVML reports no memory (GB10), the host's numbers are used and the device is marked as unified."""
    source, _ = single_gpu(MemoryInfo=3, BAR1MemoryInfo=failing(3))
    (device,) = source.inventory().devices
    assert device.unified
    assert device.vram_total_mb == psutil.virtual_memory().total // MIB
    (sample,) = source.sample({})
    assert sample.health is DeviceHealth.OK
    assert 0 < sample.free_mb <= device.vram_total_mb


def test_a_gpu_with_more_memory_than_the_host_is_not_unified():
    """Only a GPU without a BAR1 shares the host's memory."""
    huge = psutil.virtual_memory().total * 2
    memory = SimpleNamespace(total=huge, free=huge // 2, used=huge // 2)
    discrete, _ = single_gpu(MemoryInfo=memory)
    assert not discrete.inventory().devices[0].unified
    shared, _ = single_gpu(MemoryInfo=memory, BAR1MemoryInfo=failing(3))
    assert shared.inventory().devices[0].unified


@pytest.mark.parametrize(("code", "bar1"), [(4, failing(3)), (999, failing(3)), (3, None)])
def test_a_card_whose_memory_cannot_be_read_is_not_offered(code: int, bar1: object):
    """A missing permission, a failing card, and a card with memory of its own that reports none are warnings."""
    answers = {"MemoryInfo": code} | ({} if bar1 is None else {"BAR1MemoryInfo": bar1})
    source, _ = single_gpu(**answers)
    inventory = source.inventory()
    assert inventory.devices == ()
    assert [w.code for w in inventory.warnings] == ["gpu_memory_unreadable"]


def test_mig_devices_are_devices_of_their_own():
    """Each MIG device has its UUID and memory; the card itself, whose memory can't be read, is not offered."""
    memory = SimpleNamespace(total=20 * MIB * 1024, free=19 * MIB * 1024, used=MIB * 1024)
    slices = tuple(
        FakeGpu(0, uuid=f"MIG-{n}", Name="H200 MIG 1g.18gb", MemoryInfo=memory) for n in range(2)
    )
    card = FakeGpu(0, MigMode=[1, 1], MemoryInfo=4, slices=slices)
    source = NvmlSource(FakeNvml(card, FakeGpu(1)))
    inventory = source.inventory()
    assert [d.uuid for d in inventory.devices] == ["MIG-0", "MIG-1", "GPU-1"]
    assert [d.vram_total_mb for d in inventory.devices[:2]] == [20 * 1024] * 2
    assert inventory.devices[0].compute_capability == "9.0"
    assert inventory.warnings == ()
    assert [s.free_mb for s in source.sample({})[:2]] == [19 * 1024] * 2


def test_links_between_gpus_are_reported():
    """NVLink comes from the P2P status, the rest from the common ancestor; what is not reported is left out."""
    gpus = (
        FakeGpu(0, P2PStatus={"GPU-1": 0, "GPU-2": 5}, TopologyCommonAncestor={"GPU-2": 50}),
        FakeGpu(1, P2PStatus={"GPU-2": 5}, TopologyCommonAncestor=failing(3)),
        FakeGpu(2),
    )
    devices = NvmlSource(FakeNvml(*gpus)).inventory().devices
    assert devices[0].links == {"GPU-1": "nvlink", "GPU-2": "system"}
    assert devices[1].links == {"GPU-0": "nvlink"}
    assert devices[2].links == {"GPU-0": "system"}


def test_indices_for_engines_skip_no_card_that_does_not_respond():
    """CUDA counts a card that did not respond at start, so the number of the next one does not shift."""
    (device,) = NvmlSource(FakeNvml(FakeGpu(0, UUID=15), FakeGpu(1))).inventory().devices
    assert device_environment([device], "index")["CUDA_VISIBLE_DEVICES"] == "1"


def test_memory_of_zero_is_not_attributed():
    """In a container, a driver lists the pid with 0 bytes, or pids of the host that do not exist there."""
    ours = frozenset({10})
    for process in (
        SimpleNamespace(pid=10, usedGpuMemory=0),
        SimpleNamespace(pid=2**22 + 1, usedGpuMemory=5 * MIB),
    ):
        source, _ = single_gpu(ComputeRunningProcesses=[process])
        (sample,) = source.sample({INSTANCE: ours})
        assert sample.by_instance == {}
        assert not sample.attributes_memory


def test_memory_of_a_process_tree_is_summed():
    """All processes of an instance count, others do not; unknown memory stays unknown."""
    processes = [
        SimpleNamespace(pid=10, usedGpuMemory=500 * MIB),
        SimpleNamespace(pid=11, usedGpuMemory=300 * MIB),
        SimpleNamespace(pid=99, usedGpuMemory=900 * MIB),
    ]
    source, _ = single_gpu(ComputeRunningProcesses=processes)
    (sample,) = source.sample({INSTANCE: frozenset({10, 11, 12})})
    assert sample.by_instance == {INSTANCE: 800}
    unknown, _ = single_gpu(ComputeRunningProcesses=[SimpleNamespace(pid=10, usedGpuMemory=None)])
    assert unknown.sample({INSTANCE: frozenset({10})})[0].by_instance == {}


def test_misconfigurations_are_warnings():
    """Persistence mode off, MIG enabled and uncorrected ECC errors each have a stable code."""
    inventory = NvmlSource(
        FakeNvml(FakeGpu(0, PersistenceMode=0, MigMode=[1, 1], TotalEccErrors=[2]))
    ).inventory()
    assert [w.code for w in inventory.warnings] == [
        "persistence_mode_off",
        "mig_enabled",
        "ecc_errors",
    ]


def test_nvml_is_shut_down_as_often_as_it_was_started():
    """Repeated discovery leaks no reference to the driver."""
    source, library = single_gpu()
    source.inventory()
    assert library.inits == 1
    source.close()
    source.close()
    assert library.inits == 0


def test_xid_errors_are_reported_with_the_next_sample():
    """Each GPU reports its own XIDs, in order and once; other event types are ignored."""
    library = FakeNvml(FakeGpu(0), FakeGpu(1))
    source = NvmlSource(library)
    source.inventory()
    library.gpus[1].events.extend([(XID, 31), (2, 7), (XID, 79)])
    assert [sample.xids for sample in source.sample({})] == [(), (31, 79)]
    assert [sample.xids for sample in source.sample({})] == [(), ()]


def test_many_xid_errors_do_not_delay_a_sample():
    """A sample takes a bounded number of queued errors, and none is lost."""
    source, library = single_gpu()
    library.gpus[0].events.extend((XID, number) for number in range(1000))
    xids: list[int] = []
    for count in (100, 1000):
        while len(xids) < count:
            (sample,) = source.sample({})
            assert 0 < len(sample.xids) <= 100
            xids += sample.xids
    assert xids == list(range(1000))


def test_gpus_without_event_support_are_still_read():
    """A GPU that can't register events works next to one that can, and no event set is leaked."""
    library = FakeNvml(FakeGpu(0, RegisterEvents=3), FakeGpu(1))
    source = NvmlSource(library)
    assert source.inventory().warnings == ()
    assert library.event_sets == 1
    library.gpus[1].events.append((XID, 48))
    assert [(s.health, s.xids) for s in source.sample({})] == [("ok", ()), ("ok", (48,))]
    source.close()
    assert library.event_sets == 0


def test_a_lost_gpu_still_reports_its_xid():
    """The XID that precedes a loss is reported with the sample that finds the GPU lost."""
    source, library = single_gpu(UtilizationRates=failing(15))
    library.gpus[0].events.extend([(XID, 79), 15])
    (sample,) = source.sample({})
    assert (sample.health, sample.xids) == (DeviceHealth.LOST, (79,))


@given(st.integers(0, 1000))
def test_every_xid_has_a_description(xid):
    """Known XIDs have a description, others a reference."""
    assert describe_xid(xid)


async def test_the_cpu_device_comes_last():
    """Offering the CPU does not change the indices of GPUs."""
    host = Host((NvmlSource(FakeNvml(FakeGpu(0), FakeGpu(1))), CpuSource(512)), SystemClock())
    await host.open()
    try:
        assert [d.index for d in host.devices] == [0, 1, 2]
        assert [str(d.kind) for d in host.devices] == ["cuda", "cuda", "cpu"]
        reading = await host.read({})
        assert [s.uuid for s in reading.samples] == ["GPU-0", "GPU-1", "CPU-0"]
        assert host.discovery({}).cuda_version == "13.1"
    finally:
        await host.close()


async def test_a_missing_gpu_keeps_its_index_and_can_return():
    """A GPU that the driver no longer lists is lost; indices stay the same, and it can return."""
    clock = ManualClock()
    library = FakeNvml(FakeGpu(0), FakeGpu(1))
    host = Host((NvmlSource(library),), clock)
    await host.open()
    try:
        first, second = library.gpus
        first.answers["UtilizationRates"] = failing(15)
        assert [s.health for s in (await host.read({})).samples] == ["lost", "ok"]
        library.gpus = (second,)
        clock.advance(61)
        reading = await host.read({})
        assert [d.uuid for d in host.devices] == ["GPU-0", "GPU-1"]
        assert [s.health for s in reading.samples] == ["lost", "ok"]
        assert reading.samples[0].reason == "the driver no longer lists it"
        library.gpus = (FakeGpu(0), second)
        clock.advance(61)
        assert [s.health for s in (await host.read({})).samples] == ["ok", "ok"]
        assert [d.index for d in host.devices] == [0, 1]
    finally:
        await host.close()


async def test_a_driver_that_is_loaded_later_is_found():
    """Discovery is repeated on a host without a driver, so that the neuron need not be restarted."""
    clock = ManualClock()
    library = FakeNvml(FakeGpu(0), init=9)
    host = Host((NvmlSource(library),), clock)
    await host.open()
    try:
        assert host.discovery({}).warnings[0].code == "driver_not_loaded"
        await host.read({})
        library.init = None
        clock.advance(61)
        assert len((await host.read({})).samples) == 1
        assert host.discovery({}).warnings == ()
    finally:
        await host.close()


async def test_a_driver_loaded_later_is_found_beside_the_cpu():
    """A healthy cpu device does not end the search for GPUs; nor does one GPU that answered at the start."""
    clock = ManualClock()
    library = FakeNvml(FakeGpu(0), init=9)
    host = Host((NvmlSource(library), CpuSource(512)), clock)
    await host.open()
    try:
        assert [s.uuid for s in (await host.read({})).samples] == ["CPU-0"]
        silent = FakeGpu(1, UUID=15)
        library.init, library.gpus = None, (FakeGpu(0), silent)
        clock.advance(61)
        assert [s.uuid for s in (await host.read({})).samples] == ["CPU-0", "GPU-0"]
        library.gpus = (FakeGpu(0), FakeGpu(1))
        clock.advance(61)
        assert [s.uuid for s in (await host.read({})).samples] == ["CPU-0", "GPU-0", "GPU-1"]
    finally:
        await host.close()


class HangingSource(NvmlSource):
    """A source whose driver hangs while a test wants it to."""

    def __init__(self, library: FakeNvml) -> None:
        super().__init__(library)
        self.responds = threading.Event()
        self.responds.set()
        self.calls = 0

    def sample(self, pids):
        """Read the GPUs, once the driver responds."""
        self.calls += 1
        self.responds.wait()
        return super().sample(pids)


async def read_until(host: Host, health: list[str]) -> None:
    """Read the devices until they are in this state."""
    async with asyncio.timeout(60):
        while [s.health for s in (await host.read({})).samples] != health:
            await asyncio.sleep(0)


async def test_a_driver_call_that_never_returns_holds_up_nothing():
    """Other devices are read, no further call is made meanwhile, and the GPU is back once the driver responds."""
    source = HangingSource(FakeNvml(FakeGpu(0)))
    host = Host((source, CpuSource(512)), ManualClock(), read_timeout_s=0.05)
    await host.open()
    try:
        await read_until(host, ["ok", "ok"])
        source.responds.clear()
        await read_until(host, ["lost", "ok"])
        calls = source.calls
        for _ in range(3):
            sample, *_ = (await host.read({})).samples
            assert sample.reason == "the driver does not respond"
            assert not sample.gone
        assert source.calls == calls
        source.responds.set()
        await read_until(host, ["ok", "ok"])
    finally:
        source.responds.set()
        await host.close()


@pytest.mark.parametrize(("code", "gone"), [(15, True), (16, True), (999, False)])
def test_a_gpu_that_fell_off_the_bus_is_gone(code, gone):
    """Errors that only a reset can end are distinguished from transient ones."""
    source, _ = single_gpu(UtilizationRates=failing(code))
    (sample,) = source.sample({})
    assert sample.gone is gone
