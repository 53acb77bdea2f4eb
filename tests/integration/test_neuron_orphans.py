"""Worker processes left behind by an engine that ended after its neuron."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines.neuron_rig import NeuronRig, fake, load, running


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron."""
    yield from running(NeuronRig(tmp_path / "neuron"))


async def orphaned_worker(rig: NeuronRig) -> psutil.Process:
    """Kill a neuron, then its engine; return the engine's worker, which has no marker."""
    async with rig.client() as client:
        await load(client, fake("lost", "--bare-child"))
    (engine,) = rig.engines()
    (worker,) = engine.children()
    rig.stop(signal.SIGKILL)
    engine.kill()
    return worker


async def test_a_worker_that_outlived_its_leader_is_killed_at_the_next_start(rig: NeuronRig):
    """It has neither a running leader nor a marker, but is found by its process group."""
    worker = await orphaned_worker(rig)
    try:
        assert worker.is_running()
        rig.start()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        assert "orphans_killed" in rig.log.read_text()
    finally:
        if worker.is_running():
            worker.kill()


async def test_workers_of_an_engine_without_a_harness_are_killed_with_it(rig: NeuronRig):
    """An engine whose harness was removed from neuron.toml is not adopted, and no process of it is left."""
    async with rig.client() as client:
        await load(client, fake("old", "--bare-child"))
    (engine,) = rig.engines()
    (worker,) = engine.children()
    rig.stop(signal.SIGKILL)
    rig.config.write_text(rig.config.read_text().replace('name = "fake"', 'name = "renamed"'))
    try:
        rig.start()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        assert rig.engines() == []
    finally:
        if worker.is_running():
            worker.kill()
