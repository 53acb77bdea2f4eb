"""What a dead neuron's dead engine left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines.neuron_rig import NeuronRig, fake, load, running


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """A neuron."""
    yield from running(NeuronRig(tmp_path / "neuron"))


async def killed_with_its_neuron(rig: NeuronRig) -> psutil.Process:
    """The child, without a mark, of an engine whose neuron was killed, and then itself."""
    async with rig.client() as client:
        await load(client, fake("lost", "--bare-child"))
    (engine,) = rig.engines()
    (child,) = engine.children()
    rig.stop(signal.SIGKILL)
    engine.kill()
    return child


async def test_a_worker_that_outlived_its_head_is_killed_at_the_next_start(rig: NeuronRig):
    """It holds a card's memory, and neither a living head nor a mark leads to it: its process group does."""
    worker = await killed_with_its_neuron(rig)
    try:
        assert worker.is_running()
        rig.start()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        assert "orphans_killed" in rig.log.read_text()
    finally:
        if worker.is_running():
            worker.kill()


async def test_the_workers_of_an_engine_that_is_not_wanted_any_more_go_with_it(rig: NeuronRig):
    """Its harness is gone from neuron.toml, so it is not adopted; nothing of it is left."""
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
