"""Engines in cgroups of their own, on a host where the tests can create cgroups."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.neuron_rig import NeuronRig, fake, load, until, wait_for

from cortex_common.schema.instances import InstanceState, UnloadRequest
from neuron_server.process.cgroups import own_cgroup


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """Provide an empty cgroup."""
    own = own_cgroup()
    path = (own or Path("/proc")) / f"cortex-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError:
        pytest.skip("cgroups can't be created here")
    if not (path / "cgroup.kill").exists():
        pytest.skip("this kernel has no cgroup.kill")
    yield path
    (path / "cgroup.kill").write_text("1")
    wait_for(lambda: "populated 0" in (path / "cgroup.events").read_text(), 60)
    for child in sorted(path.rglob("*"), reverse=True):
        if child.is_dir():
            child.rmdir()
    path.rmdir()


def pids(cgroup: Path) -> set[int]:
    """Return the processes of a cgroup; empty if it does not exist."""
    procs = cgroup / "cgroup.procs"
    return set(map(int, procs.read_text().split())) if procs.exists() else set()


async def test_no_process_of_an_engine_escapes_its_cgroup(cgroup: Path, tmp_path: Path):
    """A child without parent, session, group or marker ends with its engine, unloaded or orphaned."""
    rig = NeuronRig(tmp_path / "neuron", neuron=f'cgroup = "{cgroup}"').start()
    try:
        async with rig.client() as client:
            for name in ("kept", "lost"):
                await load(client, fake(name, "--hidden-child", "--ignore-term", instance_id=name))
            kept, lost = (pids(cgroup / "engines" / name) for name in ("kept", "lost"))
            assert [len(kept), len(lost)] == [2, 2]
            assert len(rig.engines()) == 2, "the children have no marker"
            await client.load(fake("gone", "--hidden-child", "--hang-at-load", instance_id="gone"))
            wait_for(lambda: len(pids(cgroup / "engines" / "gone")) == 2, 60)
            await client.unload(UnloadRequest(model_id="gone"))
            assert not (cgroup / "engines" / "gone").exists()
            rig.stop(signal.SIGKILL)
        assert f"engine_isolation by={cgroup}" in rig.log.read_text()
        (rig.directory / "state" / "instances" / "lost.json").unlink()
        rig.start()
        async with rig.client() as client:
            await until(client, lambda ms: [m.status for m in ms] == [InstanceState.READY])
            assert pids(cgroup / "engines" / "kept") == kept
            assert not any(alive(pid) for pid in lost)
            await client.unload(UnloadRequest(model_id="kept"))
        assert not any(alive(pid) for pid in kept)
        assert list((cgroup / "engines").glob("*/")) == []
    finally:
        rig.close()


def alive(pid: int) -> bool:
    """Return whether a process is running."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


@pytest.mark.parametrize("leaf", ["", "neuron"])
def test_a_delegated_cgroup_is_found_and_the_neuron_moves_to_a_leaf(cgroup: Path, leaf: str):
    """This works in the unit's cgroup (systemd before 254) and in DelegateSubgroup=neuron."""
    try:
        os.setxattr(cgroup, "user.delegate", b"1")
    except OSError:
        pytest.skip("cgroups have no extended attributes here")
    start = cgroup / leaf
    start.mkdir(exist_ok=True)
    code = "import neuron_server.process.cgroups as c; print(c.find_cgroups(None).root, c.own_cgroup())"
    launch = f"echo $$ > {start}/cgroup.procs && exec {shlex.quote(sys.executable)} -c '{code}'"
    result = subprocess.run(["sh", "-c", launch], check=True, capture_output=True, text=True)
    assert result.stdout.split() == [str(cgroup), str(cgroup / "neuron")]
    assert (cgroup / "engines").is_dir()


def test_a_cgroup_that_is_not_delegated_is_not_used(cgroup: Path):
    """Write access is not enough: root can write to every cgroup."""
    code = "import neuron_server.process.cgroups as c; print(c.find_cgroups(None))"
    launch = f"echo $$ > {cgroup}/cgroup.procs && exec {shlex.quote(sys.executable)} -c '{code}'"
    result = subprocess.run(["sh", "-c", launch], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "None"
    assert [path for path in cgroup.iterdir() if path.is_dir()] == []
