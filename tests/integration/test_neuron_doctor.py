"""Warnings of a node, from the driver to `cortex doctor`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from engines.attached_rig import script
from engines.build_llama import find
from engines.fake_nvml import XID, FakeGpu, FakeNvml
from engines.served_neuron import ServedNeuron, served

from cortex_cli.doctor.checks import fleet_checks
from cortex_cli.doctor.findings import Finding, Verdict
from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import NeuronEntry
from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from cortex_server.fleet.neuron_watcher import NeuronWatcher
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from neuron_server.hardware.nvml import NvmlSource

LLAMA = find()


async def findings_of(fleet: Fleet, condition: Callable[[list[Finding]], bool]) -> list[Finding]:
    """Return doctor's findings about the node, once they meet a condition."""
    findings: list[Finding] = []
    changed = asyncio.Event()
    fleet.on_change(changed.set)
    try:
        async with asyncio.timeout(60):
            while True:
                findings = [f for f in fleet_checks(fleet.snapshot, "") if f.check == "node beast"]
                if condition(findings):
                    return findings
                await changed.wait()
                changed.clear()
    except TimeoutError:
        raise AssertionError(f"not met: {findings}") from None


@contextlib.asynccontextmanager
async def watched(neuron: ServedNeuron) -> AsyncIterator[Fleet]:
    """Watch a neuron as a gateway does."""
    entry = NeuronEntry(name="beast", endpoint=neuron.url)
    fleet = Fleet((entry,), Catalogue(), SystemClock(), Metrics())
    async with neuron.client() as client:
        watching = asyncio.create_task(NeuronWatcher("beast", client, fleet).run())
        try:
            yield fleet
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def llama_findings(directory: Path, llama_server: Path) -> list[Finding]:
    """Return doctor's findings on a host with a GPU and this llama-server."""
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=directory / "state"),
        harnesses=(HarnessEntry(name="llamacpp", binary=llama_server),),
    )
    sources = (NvmlSource(FakeNvml(FakeGpu(0))),)
    async with served(config, sources) as neuron, watched(neuron) as fleet:
        return await findings_of(
            fleet, lambda f: any("llama-server" in finding.message for finding in f)
        )


async def test_doctor_reports_an_engine_that_does_not_use_the_gpu(tmp_path: Path):
    """A llama-server without CUDA silently loads on the CPU, so doctor reports it."""
    program = script(tmp_path / "llama-server", "echo 'Available devices:'\necho '  (none)'")
    (finding,) = await llama_findings(tmp_path, program)
    assert finding.verdict is Verdict.WARNING
    assert "would run on the CPU" in finding.message


@pytest.mark.llama
@pytest.mark.skipif(LLAMA is None, reason="no llama-server: run make engines")
async def test_doctor_reports_a_real_llama_server_without_cuda(tmp_path: Path):
    """The one that `make engines` builds supports only the CPU."""
    assert LLAMA is not None
    (finding,) = await llama_findings(tmp_path, LLAMA)
    assert "--list-devices shows no GPU" in finding.message


async def test_doctor_reports_initial_and_later_warnings(tmp_path: Path):
    """Warnings that exist at the start and those that appear later are reported on the same connection."""
    config = NeuronConfig(neuron=NeuronSection(state_dir=tmp_path / "state"))
    library = FakeNvml(FakeGpu(0, PersistenceMode=0))
    async with served(config, (NvmlSource(library),)) as neuron, watched(neuron) as fleet:
        first = await findings_of(
            fleet, lambda f: any("persistence" in finding.message for finding in f)
        )
        assert [finding.verdict for finding in first] == [Verdict.WARNING]
        library.gpus[0].events.append((XID, 74))
        await neuron.runtime.measure()
        second = await findings_of(fleet, lambda f: len(f) == 2)
        assert any("XID 74" in f.message and "NVLink" in f.message for f in second)
