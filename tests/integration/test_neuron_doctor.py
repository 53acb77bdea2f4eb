"""What a node's operator should mend, all the way from the driver to `cortex doctor`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from engines.attached_rig import script
from engines.build_llama import find
from engines.fake_nvml import XID, Card, FakeNvml
from engines.served_neuron import ServedNeuron, served

from cortex_cli.doctor.checks import Finding, Verdict, fleet_checks
from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import NeuronEntry
from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from cortex_server.fleet.neuron_watcher import NeuronWatcher
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from neuron_server.hardware.nvml import NvmlSource

LLAMA = find()


async def seen(fleet: Fleet, condition: Callable[[list[Finding]], bool]) -> list[Finding]:
    """What doctor finds on the node, once it is as wanted."""
    found: list[Finding] = []
    changed = asyncio.Event()
    fleet.on_change(changed.set)
    try:
        async with asyncio.timeout(10):
            while True:
                found = [f for f in fleet_checks(fleet.snapshot, "") if f.check == "node beast"]
                if condition(found):
                    return found
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise AssertionError(f"still not so: {found}") from None


@contextlib.asynccontextmanager
async def watched(neuron: ServedNeuron) -> AsyncIterator[Fleet]:
    """A gateway's view of a neuron."""
    entry = NeuronEntry(name="beast", endpoint=neuron.url)
    fleet = Fleet((entry,), Catalogue(), SystemClock(), Metrics())
    async with NeuronClient(neuron.url, who="beast") as client:
        watching = asyncio.create_task(NeuronWatcher("beast", client, fleet).run())
        try:
            yield fleet
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def without_gpu(directory: Path, llama_server: Path) -> list[Finding]:
    """What doctor says of a host with a card and this llama-server."""
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=directory / "state"),
        harnesses=(HarnessEntry(name="llamacpp", binary=llama_server),),
    )
    sources = (NvmlSource(FakeNvml(Card(0))),)
    async with served(config, sources) as neuron, watched(neuron) as fleet:
        return await seen(fleet, lambda f: any("llama-server" in one.about for one in f))


async def test_doctor_shows_an_engine_that_would_leave_the_gpu_idle(tmp_path: Path):
    """A llama-server without CUDA on a host with a card says nothing itself, and loads on the processor."""
    program = script(tmp_path / "llama-server", "echo 'Available devices:'\necho '  (none)'")
    (found,) = await without_gpu(tmp_path, program)
    assert found.verdict is Verdict.WARNING
    assert "processor" in found.about


@pytest.mark.llama
@pytest.mark.skipif(LLAMA is None, reason="no llama-server: run make engines")
async def test_doctor_shows_a_real_llama_server_without_cuda(tmp_path: Path):
    """The one that `make engines` builds computes on the processor."""
    assert LLAMA is not None
    (found,) = await without_gpu(tmp_path, LLAMA)
    assert "--list-devices shows no GPU" in found.about


async def test_doctor_shows_warnings_of_nodes_old_and_new(tmp_path: Path):
    """What was amiss at the start is shown, and what goes amiss later too, without a new connection."""
    config = NeuronConfig(neuron=NeuronSection(state_dir=tmp_path / "state"))
    library = FakeNvml(Card(0, PersistenceMode=0))
    async with served(config, (NvmlSource(library),)) as neuron, watched(neuron) as fleet:
        first = await seen(fleet, lambda f: any("persistence" in one.about for one in f))
        assert [one.verdict for one in first] == [Verdict.WARNING]
        library.cards[0].events.append((XID, 74))
        await neuron.runtime.measure()
        second = await seen(fleet, lambda f: len(f) == 2)
        assert any("XID 74" in one.about and "NVLink" in one.about for one in second)
