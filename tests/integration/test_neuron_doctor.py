"""What a node's operator should mend, all the way from the driver to `cortex doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from engines.fake_nvml import XID, Card, FakeNvml
from engines.served_neuron import served

from cortex_cli.doctor import Finding, Verdict, fleet_checks
from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import NeuronEntry
from cortex_common.config.neuron import NeuronConfig, NeuronSection
from cortex_common.neuron_client import NeuronClient
from cortex_server.fleet.state import Fleet
from cortex_server.fleet.watcher import Watcher
from cortex_server.metrics import Metrics
from neuron_server.hardware.nvml import NvmlSource


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


async def test_doctor_shows_warnings_of_nodes_old_and_new(tmp_path: Path):
    """What was amiss at the start is shown, and what goes amiss later too, without a new connection."""
    config = NeuronConfig(neuron=NeuronSection(state_dir=tmp_path / "state"))
    library = FakeNvml(Card(0, PersistenceMode=0))
    async with served(config, (NvmlSource(library),)) as neuron:
        entry = NeuronEntry(name="beast", endpoint=neuron.url)
        fleet = Fleet((entry,), Catalogue(), SystemClock(), Metrics())
        async with NeuronClient(neuron.url, who="beast") as client:
            watching = asyncio.create_task(Watcher("beast", client, fleet).run())
            try:
                first = await seen(fleet, lambda f: any("persistence" in one.about for one in f))
                assert [one.verdict for one in first] == [Verdict.WARNING]
                library.cards[0].events.append((XID, 74))
                await neuron.runtime.measure()
                second = await seen(fleet, lambda f: len(f) == 2)
                assert any("XID 74" in one.about and "NVLink" in one.about for one in second)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
