"""The neuron's files and its view of /proc: logs, records, past loads, process trees and settings."""

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
from cortex_common.config.neuron import NeuronConfig, parse_headroom_mib
from cortex_common.errors import ConfigError, Conflict
from cortex_common.net.state_dir import lock_state_dir, mount_point
from cortex_common.schema.directives import Directive, DirectiveKind
from cortex_common.schema.instances import InstanceId, LoadSpec
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
from neuron_server.unloader import wait_until_freed, wait_until_idle

SPEC = LoadSpec(model_id="org/m", harness="h", context=10)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    """Provide a state directory."""
    state = StateDir(tmp_path / "state")
    yield state
    state.close()


def test_damaged_state_is_set_aside(tmp_path: Path) -> None:
    """Files that are not UTF-8 or not JSON stop nothing, and are kept for inspection."""
    first = StateDir(tmp_path / "state")
    node_id = first.node_id
    first.save_record(record("i-1"))
    first.save_directives([Directive(kind=DirectiveKind.CORDON)])
    first.close()
    files = ["loads.json", "attached.json", "directives.json", "instances/i-1.json"]
    for name in files:
        (first.path / name).write_bytes(b'{"\xff\xfe": 1e999')
    again = StateDir(first.path)
    assert again.past_load(SPEC, "cpu") is None
    assert again.load_cycles() == {}
    assert again.directives() == ()
    assert list(again.records()) == []
    assert again.node_id == node_id
    again.close()
    assert all((first.path / f"{name}.damaged").exists() for name in files)


def test_state_that_cannot_be_written_is_reported(state: StateDir) -> None:
    """A failed write of any file is a warning with its file system, and counted, until it succeeds."""
    blocker = state.path / "directives.json"
    blocker.mkdir()
    assert not state.save_directives([])
    (warning,) = state.warnings()
    assert f"{blocker} can't be written: " in warning.message
    assert f"mounted at {mount_point(blocker)}" in warning.message
    assert state.write_failures == 1
    blocker.rmdir()
    assert state.save_directives([])
    assert list(state.warnings()) == []


def record(name: str, pid: int = 1) -> EngineRecord:
    """Return a record of an engine."""
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


def test_a_log_stays_within_its_limit_while_the_engine_writes(tmp_path: Path):
    """The file that the engine has open is truncated in place; tail still returns the last lines in order."""
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


async def test_following_a_log_continues_after_a_trim(tmp_path: Path):
    """A follower receives new output even after a trim, until the log is removed."""
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


def test_records_survive_and_broken_ones_are_set_aside(state: StateDir):
    """Saved records are read back; an invalid file is renamed."""
    state.save_record(record("a"))
    state.save_record(record("b"))
    state.save_record(record("b", pid=9))
    broken = state.path / "instances" / "c.json"
    broken.write_text("{")
    assert {r.instance_id: r.pid for r in state.records()} == {"a": 1, "b": 9}
    assert not broken.exists()
    assert broken.with_name("c.json.damaged").read_text() == "{"
    state.remove_record(InstanceId("a"))
    state.remove_record(InstanceId("a"))
    assert [r.instance_id for r in state.records()] == ["b"]


@pytest.mark.parametrize("daemon", ["gateway", "neuron"])
def test_a_state_directory_has_one_owner(tmp_path: Path, daemon: str):
    """A directory in use is refused to another process, and available again once it is released."""
    path = tmp_path / "state"
    script = (
        "import sys; from pathlib import Path; from cortex_common.net.state_dir import lock_state_dir, mount_point;"
        "lock_state_dir(Path(sys.argv[1]), sys.argv[2])"
    )
    argv = [sys.executable, "-c", script, str(path), daemon]
    lock = lock_state_dir(path, daemon)
    refused = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert f"{Conflict.__name__}: another {daemon} uses {path}" in refused.stderr
    other = [*argv[:-1], "neuron" if daemon == "gateway" else "gateway"]
    subprocess.run(other, check=True)  # a gateway and a neuron can share a directory
    os.close(lock)
    subprocess.run(argv, check=True)


def test_an_unusable_state_directory_is_a_config_error(tmp_path: Path):
    """The error names the directory, and the hint names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/state") as refused:
        StateDir(tmp_path / "file" / "state")
    (tmp_path / "state" / "neuron.lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match="can't use"):
        StateDir(tmp_path / "state")
    assert "state_dir" in refused.value.hints[0]


def test_past_loads_are_keyed_by_what_they_depend_on(state: StateDir):
    """A past load applies to the same spec on the same kind of device, not to another context."""
    state.save_past_load(SPEC, "cuda", PastLoad(seconds=3.5, per_device_mb=700))
    found = state.past_load(SPEC.model_copy(update={"instance_id": "x"}), "cuda")
    assert found == PastLoad(seconds=3.5, per_device_mb=700)
    assert state.past_load(SPEC, "cpu") is None
    assert state.past_load(SPEC.model_copy(update={"context": 11}), "cuda") is None
    (state.path / "loads.json").write_text("[]")
    assert state.past_load(SPEC, "cuda") is None


def test_only_logs_of_existing_instances_are_kept(state: StateDir):
    """Logs of other instances are removed."""
    for name in ("kept", "gone"):
        state.log(InstanceId(name)).open_for_engine().close()
    state.remove_logs(keep={"kept"})
    assert [path.name for path in (state.path / "logs").iterdir()] == ["kept.log"]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=30))
def test_a_tree_contains_all_descendants(edges):
    """For any table, a tree contains its leader's group and every child of its members, and terminates."""
    table = ProcessTable(
        {p: Process(p, parent, 1 + p % 3, 0, 0, zombie=False) for p, parent in edges}
    )
    tree = table.tree(2)
    for process in table.by_pid.values():
        if process.parent in tree or process.group == 2:
            assert process.pid in tree


def test_the_remaining_tree_is_the_group_unless_the_pid_was_reused():
    """A group outlives its leader; if the leader's pid was reused, the new process is not part of the tree."""

    def process(pid: int, started: int) -> Process:
        return Process(pid, 1, 7, started, 0, zombie=False)

    worker, other = process(8, 90), process(7, 500)
    assert ProcessTable({8: worker}).remaining_tree(7, 80) == {8}
    assert ProcessTable({7: process(7, 80), 8: worker}).remaining_tree(7, 80) == {7, 8}
    assert ProcessTable({7: other}).remaining_tree(7, 80) == frozenset()


def test_processes_are_found_by_marker_tree_and_port(tmp_path: Path):
    """A child is found by its environment, its parent and its listening port; a zombie is not."""
    ready = tmp_path / "port"
    program = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0));"
        "open(sys.argv[1], 'w').write(str(s.getsockname()[1])); time.sleep(600)"
    )
    marker = f"CORTEX_INSTANCE=test-{os.getpid()}"
    name, _, value = marker.partition("=")
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(ready)], env=os.environ | {name: value}
    )
    try:
        wait_for(lambda: ready.exists() and ready.read_text() != "", 60)
        table = read_table()
        assert child.pid in table.tree(os.getpid())
        assert pids_with_marker(table, marker) == {child.pid}
        assert marker.encode() in environment(child.pid)
        assert listening_pids(int(ready.read_text()), table.tree(child.pid)) == {child.pid}
        assert listening_pids(1, table.tree(child.pid)) == set()
        before = read_process(child.pid)
        assert before is not None
        assert table.is_same(child.pid, before.started_ticks)
        assert table.rss_mb(frozenset({child.pid})) > 0
        child.kill()
        wait_for(lambda: (read_process(child.pid) or before).zombie, 60)
        assert child.pid not in read_table().tree(os.getpid())
    finally:
        child.kill()
        child.wait()
    assert read_process(child.pid) is None
    assert environment(child.pid) == ()


async def test_an_engine_is_idle_after_two_idle_polls():
    """One idle poll between two requests is not enough; an engine that reports no count is idle."""
    counts = iter([1, 0, 2, 0, 0, 5])
    clock = SystemClock()

    async def in_flight() -> int | None:
        return next(counts)

    assert await wait_until_idle(clock, lambda: clock.monotonic() + 60.0, in_flight)
    assert next(counts) == 5

    async def unknown() -> int | None:
        return None

    assert await wait_until_idle(clock, clock.monotonic, unknown)


async def test_an_unload_waits_while_free_memory_rises():
    """Waiting ends once free memory has stopped rising on every device."""
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
    """Both notations are converted to MiB."""
    assert parse_headroom_mib(text, total) == mib


@pytest.mark.parametrize(
    ("toml", "error"),
    [
        ('[memory]\nheadroom = "lots"', "is not a size"),
        ('[memory]\nheadroom = "120%"', "more than 100%"),
        ('[neuron]\nengine_access = "direct"', "requires engine_host"),
        ('[neuron]\non_stop = "maybe"', "on_stop"),
        ('[[harnesses]]\nname = "x"\nport_range = [9, 8]', "not a first and a last port"),
        ('[[harnesses]]\nname = "x"\nunit = "rm -rf"', "unit"),
        ('[[harnesses]]\nname = "x"\nkind = "vlllm"', "kind"),
    ],
)
def test_invalid_settings_are_rejected(tmp_path: Path, toml: str, error: str):
    """An invalid setting is a config error that describes the problem."""
    path = tmp_path / "neuron.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError, match=error):
        load(NeuronConfig, path, {})


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[" * 100_000, b"[]", b"1" * 5000, b'{"a": {"count": 1e400}}', b'{"a":1e999}'],
    ids=range(6),
)
def test_damaged_files_of_loads_and_cycles_are_ignored(state: StateDir, content: bytes):
    """Whatever is in the files, the neuron starts without the figures."""
    for name in ("loads.json", "attached.json"):
        (state.path / name).write_bytes(content)
    spec = LoadSpec(model_id="m", harness="h")
    assert state.past_load(spec, "cuda") is None
    assert state.load_cycles() == {}
    state.save_past_load(spec, "cuda", PastLoad(seconds=1.0))
    assert state.past_load(spec, "cuda") == PastLoad(seconds=1.0)


def test_state_files_are_readable_by_the_owner_only(state: StateDir):
    """Arguments and environment of engines can contain secrets."""
    state.save_record(record("a"))
    state.save_past_load(LoadSpec(model_id="m", harness="h"), "cuda", PastLoad(seconds=1.0))
    files = [p for p in state.path.rglob("*") if p.is_file()]
    assert len(files) >= 3
    assert {oct(p.stat().st_mode & 0o077) for p in files} == {"0o0"}


async def test_secrets_of_an_engine_are_hidden_in_its_log(tmp_path: Path):
    """In the last lines, which errors repeat too, and in what follows."""
    log = EngineLog(tmp_path / "logs" / "i.log", secrets=("s3cret-token",))
    with log.open_for_engine() as file:
        file.write(b"args: --api-key s3cret-token\n")
        assert log.tail(5) == ("args: --api-key ***",)
        follower = log.follow(0, lambda: False)
        assert await anext(follower) == b"args: --api-key ***\n"
        file.write(b"\xff s3cret-token\n")
        assert await anext(follower) == b"\xff ***\n"
        await follower.aclose()
