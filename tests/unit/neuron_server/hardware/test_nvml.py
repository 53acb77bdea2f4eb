"""NVML's states through a library of the same shape, for everything that one machine can't show."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
from engines.fake_nvml import MIB, XID, Card, FakeNvml, failing
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.clock import ManualClock, SystemClock
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.schema.instances import InstanceId
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.hardware.xid import describe_xid

MINE = InstanceId("mine")


def one(**answers) -> tuple[NvmlSource, FakeNvml]:
    """A source with one card, and its library."""
    library = FakeNvml(Card(0, **answers))
    source = NvmlSource(library)
    source.inventory()
    return source, library


def test_cards_are_listed_with_what_the_driver_says():
    """Index, UUID, name, size and compute capability come from NVML; versions as people write them."""
    found = NvmlSource(FakeNvml(Card(0), Card(1))).inventory()
    assert [d.uuid for d in found.devices] == ["GPU-0", "GPU-1"]
    assert found.devices[1].index == 1
    assert found.devices[0].vram_total_mb == 8000
    assert found.devices[0].compute_capability == "9.0"
    assert (found.driver_version, found.cuda_version) == ("580.126.09", "13.1")
    assert found.warnings == ()


def test_a_reading_has_memory_load_temperature_and_power():
    """MiB, percent, degrees and watts, as nvidia-smi shows them."""
    source, _ = one()
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2000, 6000)
    assert (sample.utilization_pct, sample.temp_c, sample.power_w) == (42, 55, 123.456)
    assert sample.health is DeviceHealth.OK


def test_what_the_driver_keeps_for_itself_is_not_used():
    """As in nvidia-smi, rounded like there; a driver before 510 can't tell it apart."""
    with_it = SimpleNamespace(
        total=8000 * MIB, free=5399 * MIB + MIB // 2, used=2600 * MIB + MIB // 2
    )
    without = SimpleNamespace(**vars(with_it) | {"used": 2000 * MIB})
    source, _ = one(MemoryInfo=with_it, MemoryInfo_v2=without)
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2000, 5400)
    source, _ = one(MemoryInfo=with_it, MemoryInfo_v2=13)
    (sample,) = source.sample({})
    assert (sample.used_mb, sample.free_mb) == (2601, 5400)


@pytest.mark.parametrize("code", [12, 9, 18, 999])
def test_no_driver_is_a_state(code):
    """A missing library, an unloaded module and a mismatch give no devices, and a warning unless there is no driver."""
    source = NvmlSource(FakeNvml(init=code))
    found = source.inventory()
    assert found.devices == ()
    codes = {
        12: [],
        9: ["driver_not_loaded"],
        18: ["driver_library_mismatch"],
        999: ["nvml_failed"],
    }
    assert [w.code for w in found.warnings] == codes[code]
    assert source.sample({}) == ()
    source.close()


def test_without_the_package_there_are_no_gpus():
    """A host without nvidia-ml-py is a host without GPUs."""
    assert NvmlSource(None).inventory().devices == ()


def test_an_unsupported_field_is_none_and_the_device_lives():
    """NotSupported on one field never fails a device."""
    source, _ = one(UtilizationRates=failing(3), Temperature=failing(3), PowerUsage=failing(4))
    (sample,) = source.sample({})
    assert (sample.utilization_pct, sample.temp_c, sample.power_w) == (None, None, None)
    assert sample.health is DeviceHealth.OK


@pytest.mark.parametrize(
    "trouble", [failing(15), failing(16), failing(999), RuntimeError("mismatch")]
)
def test_a_lost_card_is_marked_and_the_others_go_on(trouble):
    """A card that falls off the bus is lost with nothing free; its neighbour is still read."""
    source = NvmlSource(FakeNvml(Card(0, UtilizationRates=trouble), Card(1)))
    source.inventory()
    lost, fine = source.sample({})
    assert lost.health is DeviceHealth.LOST
    assert lost.free_mb == 0
    assert lost.reason
    assert fine.health is DeviceHealth.OK


def test_a_card_that_does_not_answer_at_start_is_a_warning():
    """Enumeration goes on without it."""
    found = NvmlSource(FakeNvml(Card(0, UUID=15), Card(1))).inventory()
    assert [d.uuid for d in found.devices] == ["GPU-1"]
    assert [w.code for w in found.warnings] == ["gpu_lost"]


def test_unified_memory_is_the_hosts():
    """Where NVML has no memory to tell (GB10), the host's numbers stand in, and the device says so."""
    source, _ = one(MemoryInfo=3)
    (device,) = source.inventory().devices
    assert device.unified
    assert device.vram_total_mb == psutil.virtual_memory().total // MIB
    (sample,) = source.sample({})
    assert sample.health is DeviceHealth.OK
    assert 0 < sample.free_mb <= device.vram_total_mb


def test_a_card_larger_than_the_hosts_memory_is_no_unified_one():
    """Only a card without a memory window of its own shares the host's."""
    huge = psutil.virtual_memory().total * 2
    memory = SimpleNamespace(total=huge, free=huge // 2, used=huge // 2)
    discrete, _ = one(MemoryInfo=memory)
    assert not discrete.inventory().devices[0].unified
    shared, _ = one(MemoryInfo=memory, BAR1MemoryInfo=failing(3))
    assert shared.inventory().devices[0].unified


def test_memory_of_a_process_tree_is_summed():
    """An instance's memory is that of all its processes; strangers are not counted, and unknown stays unknown."""
    processes = [
        SimpleNamespace(pid=10, usedGpuMemory=500 * MIB),
        SimpleNamespace(pid=11, usedGpuMemory=300 * MIB),
        SimpleNamespace(pid=99, usedGpuMemory=900 * MIB),
    ]
    source, _ = one(ComputeRunningProcesses=processes)
    (sample,) = source.sample({MINE: frozenset({10, 11, 12})})
    assert sample.by_instance == {MINE: 800}
    unknown, _ = one(ComputeRunningProcesses=[SimpleNamespace(pid=10, usedGpuMemory=None)])
    assert unknown.sample({MINE: frozenset({10})})[0].by_instance == {}


def test_operators_are_warned():
    """Persistence mode off, MIG on and uncorrected ECC errors each have a stable code."""
    found = NvmlSource(
        FakeNvml(Card(0, PersistenceMode=0, MigMode=[1, 1], TotalEccErrors=[2]))
    ).inventory()
    assert [w.code for w in found.warnings] == ["persistence_mode_off", "mig_enabled", "ecc_errors"]


def test_nvml_is_shut_down_as_often_as_it_was_started():
    """Looking again for devices leaks no reference of the driver."""
    source, library = one()
    source.inventory()
    assert library.inits == 1
    source.close()
    source.close()
    assert library.inits == 0


def test_xid_errors_come_with_the_next_reading_of_their_card():
    """Each card tells its own, in order and once; events of other types are no XIDs."""
    library = FakeNvml(Card(0), Card(1))
    source = NvmlSource(library)
    source.inventory()
    library.cards[1].events.extend([(XID, 31), (2, 7), (XID, 79)])
    assert [sample.xids for sample in source.sample({})] == [(), (31, 79)]
    assert [sample.xids for sample in source.sample({})] == [(), ()]


def test_a_storm_of_xid_errors_delays_no_reading():
    """However many are queued, one reading takes a bounded number, and none is lost."""
    source, library = one()
    library.cards[0].events.extend((XID, number) for number in range(1000))
    told: list[int] = []
    for most in (100, 1000):
        while len(told) < most:
            (sample,) = source.sample({})
            assert 0 < len(sample.xids) <= 100
            told += sample.xids
    assert told == list(range(1000))


def test_cards_without_events_are_read_as_ever():
    """A card that can't register events lives, beside one that can, and no event set is left behind."""
    library = FakeNvml(Card(0, RegisterEvents=3), Card(1))
    source = NvmlSource(library)
    assert source.inventory().warnings == ()
    assert library.event_sets == 1
    library.cards[1].events.append((XID, 48))
    assert [(s.health, s.xids) for s in source.sample({})] == [("ok", ()), ("ok", (48,))]
    source.close()
    assert library.event_sets == 0


def test_a_lost_card_still_tells_why():
    """The XID that announces a card's end comes with the reading that finds it lost."""
    source, library = one(UtilizationRates=failing(15))
    library.cards[0].events.extend([(XID, 79), 15])
    (sample,) = source.sample({})
    assert (sample.health, sample.xids) == (DeviceHealth.LOST, (79,))


@given(st.integers(0, 1000))
def test_every_xid_has_words(xid):
    """Known or not, an XID comes with what it means or where to look it up."""
    assert describe_xid(xid)


async def test_the_cpu_device_comes_last():
    """Offering the CPU renumbers no GPU."""
    host = Host((NvmlSource(FakeNvml(Card(0), Card(1))), CpuSource(512)), SystemClock())
    await host.open()
    try:
        assert [d.index for d in host.devices] == [0, 1, 2]
        assert [str(d.kind) for d in host.devices] == ["cuda", "cuda", "cpu"]
        reading = await host.read({})
        assert [s.uuid for s in reading.samples] == ["GPU-0", "GPU-1", "CPU-0"]
        assert host.discovery({}).cuda_version == "13.1"
    finally:
        await host.close()


async def test_a_vanished_card_keeps_its_number_and_comes_back():
    """A card that the driver no longer lists is lost, its neighbours keep their numbers, and it may return."""
    clock = ManualClock()
    library = FakeNvml(Card(0), Card(1))
    host = Host((NvmlSource(library),), clock)
    await host.open()
    try:
        first, second = library.cards
        first.answers["UtilizationRates"] = failing(15)
        assert [s.health for s in (await host.read({})).samples] == ["lost", "ok"]
        library.cards = (second,)
        clock.advance(61)
        reading = await host.read({})
        assert [d.uuid for d in host.devices] == ["GPU-0", "GPU-1"]
        assert [s.health for s in reading.samples] == ["lost", "ok"]
        assert reading.samples[0].reason == "the driver no longer lists it"
        library.cards = (Card(0), second)
        clock.advance(61)
        assert [s.health for s in (await host.read({})).samples] == ["ok", "ok"]
        assert [d.index for d in host.devices] == [0, 1]
    finally:
        await host.close()


async def test_a_driver_that_is_loaded_later_is_found():
    """A host without a driver is looked at again, so that the neuron need not be restarted."""
    clock = ManualClock()
    library = FakeNvml(Card(0), init=9)
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
