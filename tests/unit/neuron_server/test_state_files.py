"""What a neuron keeps on disk and reads of /proc: logs, records, past loads, process trees, and its settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.neuron_rig import wait_for
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.clock import SystemClock
from cortex_common.config.loader import load
from cortex_common.config.neuron import NeuronConfig, headroom_mib
from cortex_common.errors import ConfigError, Conflict
from cortex_common.net.state_dir import held
from cortex_common.schema.instances import InstanceId, LoadSpec
from neuron_server.instances.unloader import wait_until_freed, wait_until_idle
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.process_table import (
    Process,
    ProcessTable,
    environment,
    listening_pids,
    pids_with_marker,
    read_process,
    read_table,
)
from neuron_server.state_store import EngineRecord, PastLoad, StateDir

SPEC = LoadSpec(model_id="org/m", harness="h", context=10)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    """A state directory of the test's own."""
    found = StateDir(tmp_path / "state")
    yield found
    found.close()


def record(name: str, pid: int = 1) -> EngineRecord:
    """A record of some engine."""
    return EngineRecord(
        instance_id=InstanceId(name),
        spec=SPEC,
        devices=(0,),
        granted_mb=5,
        port=8100,
        pid=pid,
        started_ticks=7,
        boot="b",
        started_at=1.0,
    )


def test_a_log_stays_within_its_bounds_while_its_engine_writes(tmp_path: Path):
    """The file that the engine holds open is cut in place; tail still gives the latest lines in order."""
    log = EngineLog(tmp_path / "logs" / "i.log", max_bytes=1000)
    with log.open_for_engine() as output:
        for number in range(500):
            output.write(f"line {number}\n".encode())
            log.trim()
    assert log.size() <= 1010
    assert log.path.with_name("i.log.1").stat().st_size <= 1010
    assert log.tail(3) == ("line 497", "line 498", "line 499")
    assert len(log.tail(80)) == 80
    assert log.tail(0) == ()
    log.remove()
    assert log.tail(5) == ()
    assert log.size() == 0


async def test_a_followed_log_goes_on_over_a_cut(tmp_path: Path):
    """Who follows gets what is written, also after the file was cut in between, until the instance is gone."""
    log = EngineLog(tmp_path / "logs" / "i.log", max_bytes=10)
    with log.open_for_engine() as output:
        output.write(b"before the follower\n")
        follower = log.follow(log.size(), lambda: False)
        log.trim()
        output.write(b"after\n")
        assert await anext(follower) == b"after\n"
        output.write(b"more\n")
        assert await anext(follower) == b"more\n"
        log.remove()
        with pytest.raises(StopAsyncIteration):
            await anext(follower)


def test_records_survive_and_broken_ones_are_removed(state: StateDir):
    """What was saved is read back; a file that is no record is gone afterwards."""
    state.save_record(record("a"))
    state.save_record(record("b"))
    state.save_record(record("b", pid=9))
    broken = state.path / "instances" / "c.json"
    broken.write_text("{")
    assert {r.instance_id: r.pid for r in state.records()} == {"a": 1, "b": 9}
    assert not broken.exists()
    state.remove_record(InstanceId("a"))
    state.remove_record(InstanceId("a"))
    assert [r.instance_id for r in state.records()] == ["b"]


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_a_state_directory_has_one_owner(tmp_path: Path, daemon: str):
    """A process that wants a directory in use is refused, and gets it once it is free."""
    path = tmp_path / "state"
    script = "import sys, pathlib, cortex_common.net.state_dir as s; s.held(pathlib.Path(sys.argv[1]), sys.argv[2])"
    argv = [sys.executable, "-c", script, str(path), daemon]
    lock = held(path, daemon)
    refused = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert f"{Conflict.__name__}: another {daemon} uses {path}" in refused.stderr
    other = [*argv[:-1], "neuron" if daemon == "gateway" else "gateway"]
    subprocess.run(other, check=True)  # a host with both may keep all in one place
    os.close(lock)
    subprocess.run(argv, check=True)


def test_a_state_directory_that_cant_be_made_is_a_mistake_in_the_settings(tmp_path: Path):
    """The error names the directory and the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/state") as refused:
        StateDir(tmp_path / "file" / "state")
    (tmp_path / "state" / "neuron.lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match="can't use"):
        StateDir(tmp_path / "state")
    assert "state_dir" in refused.value.hints[0]


def test_past_loads_are_known_by_what_they_depend_on(state: StateDir):
    """The same spec on the same kind of device is remembered; another context is another load."""
    state.save_past_load(SPEC, "cuda", PastLoad(seconds=3.5, per_device_mb=700))
    found = state.past_load(SPEC.model_copy(update={"instance_id": "x"}), "cuda")
    assert found == PastLoad(seconds=3.5, per_device_mb=700)
    assert state.past_load(SPEC, "cpu") is None
    assert state.past_load(SPEC.model_copy(update={"context": 11}), "cuda") is None
    (state.path / "loads.json").write_text("[]")
    assert state.past_load(SPEC, "cuda") is None


def test_only_living_instances_keep_their_logs(state: StateDir):
    """Logs of instances that are no more are removed at the start."""
    for name in ("kept", "gone"):
        state.log(InstanceId(name)).open_for_engine().close()
    state.remove_logs(keep={"kept"})
    assert [path.name for path in (state.path / "logs").iterdir()] == ["kept.log"]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=30))
def test_a_tree_is_closed_under_children(edges):
    """Whatever the table says, a tree holds its head's group and every child of its members, and terminates."""
    table = ProcessTable(
        {p: Process(p, parent, 1 + p % 3, 0, 0, zombie=False) for p, parent in edges}
    )
    tree = table.tree(2)
    for process in table.by_pid.values():
        if process.parent in tree or process.group == 2:
            assert process.pid in tree


def test_what_an_ended_head_left_is_its_group_and_never_a_strangers():
    """Its group is there without it; once its pid is somebody else's, nothing of that one is taken for its own."""

    def process(pid: int, started: int) -> Process:
        return Process(pid, 1, 7, started, 0, zombie=False)

    worker, stranger = process(8, 90), process(7, 500)
    assert ProcessTable({8: worker}).remaining_tree(7, 80) == {8}
    assert ProcessTable({7: process(7, 80), 8: worker}).remaining_tree(7, 80) == {7, 8}
    assert ProcessTable({7: stranger}).remaining_tree(7, 80) == frozenset()


def test_processes_are_found_by_mark_tree_and_port(tmp_path: Path):
    """A child is found by its environment, its parent and the port it listens on; a zombie is not."""
    ready = tmp_path / "port"
    program = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0));"
        "open(sys.argv[1], 'w').write(str(s.getsockname()[1])); time.sleep(600)"
    )
    mark = f"CORTEX_INSTANCE=test-{os.getpid()}"
    name, _, value = mark.partition("=")
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(ready)], env=os.environ | {name: value}
    )
    try:
        wait_for(lambda: ready.exists() and ready.read_text() != "", 10)
        table = read_table()
        assert child.pid in table.tree(os.getpid())
        assert pids_with_marker(table, mark) == {child.pid}
        assert mark.encode() in environment(child.pid)
        assert listening_pids(int(ready.read_text()), table.tree(child.pid)) == {child.pid}
        assert listening_pids(1, table.tree(child.pid)) == set()
        before = read_process(child.pid)
        assert before is not None
        assert table.is_same(child.pid, before.started_ticks)
        assert table.rss_mb(frozenset({child.pid})) > 0
        child.kill()
        wait_for(lambda: (read_process(child.pid) or before).zombie, 5)
        assert child.pid not in read_table().tree(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert read_process(child.pid) is None
    assert environment(child.pid) == ()


async def test_an_engine_must_be_seen_idle_twice():
    """One idle look between two requests is not enough; an engine that can't tell is not waited for."""
    seen = iter([1, 0, 2, 0, 0, 5])
    clock = SystemClock()

    async def in_flight() -> int | None:
        return next(seen)

    await wait_until_idle(clock, 10.0, in_flight)
    assert next(seen) == 5

    async def silent() -> int | None:
        return None

    begun = clock.monotonic()
    await wait_until_idle(clock, 10.0, silent)
    assert clock.monotonic() - begun < 5


async def test_memory_is_waited_for_while_it_rises():
    """Free memory counts once it has stopped rising on every device."""
    readings = iter([[0, 50], [300, 50], [600, 50], [604, 50], [9999, 9999]])

    async def free() -> list[int]:
        return next(readings)

    await wait_until_freed(SystemClock(), free)
    assert next(readings) == [9999, 9999]


@pytest.mark.parametrize(
    ("text", "total", "mib"),
    [("512MiB", 1000, 512), ("5%", 2000, 100), ("1GiB", 10, 1024), ("0%", 9, 0), ("12.5%", 80, 10)],
)
def test_headroom_is_a_size_or_a_share(text, total, mib):
    """Both ways of writing it come out in MiB."""
    assert headroom_mib(text, total) == mib


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[memory]\nheadroom = "lots"', "is not a size"),
        ('[memory]\nheadroom = "120%"', "more than all"),
        ('[neuron]\nengine_access = "direct"', "needs engine_host"),
        ('[neuron]\non_stop = "maybe"', "on_stop"),
        ('[[harnesses]]\nname = "x"\nport_range = [9, 8]', "not a first and a last port"),
        ('[[harnesses]]\nname = "x"\nunit = "rm -rf"', "unit"),
        ('[[harnesses]]\nname = "x"\nkind = "vlllm"', "kind"),
    ],
)
def test_mistakes_in_the_settings_are_named(tmp_path: Path, toml: str, said: str):
    """A setting that makes no sense is refused with its line."""
    path = tmp_path / "neuron.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError, match=said):
        load(NeuronConfig, path, {})
