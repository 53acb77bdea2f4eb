"""Supervision of misbehaving engines, with the fake engine process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from engines.neuron_rig import (
    NeuronRig,
    engine_http,
    fake,
    following,
    load,
    running,
    until,
    wait_for,
)
from prometheus_client.parser import text_string_to_metric_families
from rigs.inprocess_gateway import running_gateway

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import ModelNotFound, Unavailable
from cortex_common.schema.instances import InstanceState, ModelInfo, UnloadRequest
from cortex_common.schema.usage import InstanceUsage, UsageReport
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.process_table import read_process

LEADER = """
import signal, subprocess, sys
worker = "import sys; sys.stdin.read(); open(sys.argv[1], 'w').write('stopped by the leader')"
child = subprocess.Popen([sys.executable, "-c", worker, sys.argv[1]], stdin=subprocess.PIPE)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
child.communicate()
"""
"""An engine whose worker shuts down cleanly when its leader closes a pipe."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """Provide a neuron with harnesses for load timeouts, health checks and requests in flight."""
    directory = tmp_path_factory.mktemp("neuron")
    rig = NeuronRig(directory, memory_mb=1000)
    config = rig.config.read_text()
    template = config.split("[[harnesses]]")[2]
    for name, settings in (
        ("impatient", "load_timeout_s = 1.5\n"),
        ("watched", "health_interval_s = 1.0\n"),
        ("reporting", 'running_metrics = ["fake_running"]\n'),
    ):
        config += "[[harnesses]]" + template.replace('name = "fake"', f'name = "{name}"') + settings
    rig.config.write_text(config)
    yield from running(rig)


def is_state(state: InstanceState) -> Callable[[Sequence[ModelInfo]], bool]:
    """Return a condition: the only instance is in a state."""
    return lambda models: bool(models) and models[0].status is state


async def failed_load(client: NeuronClient, *faults: str, **more: object) -> str:
    """Load an engine that fails, unload it, and return the error."""
    answer = await client.load(fake("faulty", *faults, **more))
    models = await until(client, is_state(InstanceState.FAILED))
    assert models[0].instance_id == answer.instance_id
    with pytest.raises(Unavailable):
        await client.endpoint("faulty")
    assert (await client.health()).devices[0].vram_available_mb == 1000
    await client.unload(UnloadRequest(model_id="faulty"))
    assert await client.models() == ()
    return models[0].error or ""


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (("--exit-at-load", "3", "--say", "no such layer"), "engine crashed (exit status 3)"),
        (("--oom-at-load",), "the engine ran out of memory (exit status 1)"),
        (("--crash-at-load",), "the engine crashed (SIGABRT)"),
        (("--no-such-flag",), "did not accept its arguments (exit status 2)"),
        (("--exit-at-load", "0"), "the engine exited by itself (exit status 0)"),
    ],
)
async def test_an_engine_that_fails_to_load_is_classified(
    rig: NeuronRig, faults: tuple[str, ...], error: str
):
    """The error says how the engine ended and includes its last output; its grant is released."""
    async with rig.client() as client:
        assert error in await failed_load(client, *faults)


async def test_the_last_output_of_an_engine_is_in_the_error(rig: NeuronRig):
    """The error ends with what the engine printed before it exited."""
    async with rig.client() as client:
        error = await failed_load(
            client, "--exit-at-load", "1", "--say", "tensor foo has wrong shape"
        )
    assert error.endswith("tensor foo has wrong shape")


async def test_a_load_beyond_its_deadline_is_aborted(rig: NeuronRig):
    """An engine that hangs while loading is killed at the configured limit."""
    async with rig.client() as client:
        error = await failed_load(client, "--hang-at-load", harness="impatient")
    assert error == "the engine was not ready after 2 s: nothing answers on its port"
    assert rig.engines() == []


async def test_a_failed_load_can_be_repeated(rig: NeuronRig):
    """A new load of a failed model replaces the failed instance."""
    async with rig.client() as client:
        await client.load(fake("again", "--exit-at-load", "1"))
        await until(client, is_state(InstanceState.FAILED))
        await load(client, fake("again"))
        assert len(await client.models()) == 1
        await client.unload(UnloadRequest(model_id="again"))


async def test_an_engine_that_ignores_sigterm_is_killed_with_its_children(rig: NeuronRig):
    """All processes that the engine started are killed after the stop timeout, and its memory is free again."""
    async with rig.client() as client:
        before = (await client.health()).devices[0].vram_available_mb
        await load(client, fake("tough", "--ignore-term", "--child", "--daemon-child"))
        assert len(rig.engines()) == 3
        await client.unload(UnloadRequest(model_id="tough"))
        assert rig.engines() == []
        assert (await client.health()).devices[0].vram_available_mb == before


@pytest.fixture
def worker_output(tmp_path: Path) -> Path:
    """Provide the file that the worker of `leader` writes when it shuts down."""
    return tmp_path / "worker_output"


@pytest.fixture
def leader(worker_output: Path) -> subprocess.Popen[bytes]:
    """Provide the leader of a running engine."""
    argv = [sys.executable, "-c", LEADER, str(worker_output)]
    leader = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    with leader.stdout as output:
        assert output.readline() == b"up\n"
    return leader


async def test_only_the_leader_is_signalled(leader: subprocess.Popen[bytes], worker_output: Path):
    """The leader stops its workers itself, as SGLang does: a worker that is signalled can't shut down cleanly."""
    process = read_process(leader.pid)
    assert process is not None
    marker = f"OUTPUT={worker_output}"
    engine = EngineProcess(leader.pid, process.started_ticks, marker, child=leader)
    await engine.stop(signal.SIGTERM, 60)
    assert engine.status == 0
    assert await asyncio.to_thread(worker_output.read_text) == "stopped by the leader"


async def test_children_of_a_crashed_engine_are_killed(rig: NeuronRig, tmp_path: Path):
    """When the leader crashes, its remaining children are killed before the engine is started again."""
    crash = tmp_path / "crash"
    async with rig.client() as client:
        ready = await load(client, fake("head", "--child", "--crash-on", str(crash)))
        children = set(rig.engines())
        assert len(children) == 2
        async with following(client) as wait:
            crash.touch()
            await wait(is_state(InstanceState.LOADING))
            models = await wait(is_state(InstanceState.READY))
        assert models[0].instance_id == ready.instance_id
        assert len(rig.engines()) == 2
        assert not children & set(rig.engines())
        await client.unload(UnloadRequest(model_id="head"))


async def test_a_crashed_engine_is_restarted_after_a_delay(rig: NeuronRig, tmp_path: Path):
    """An engine that was ready before is restarted after a second; the reason is visible in the meantime."""
    async with rig.client() as client:
        crash = tmp_path / "crash"
        await load(client, fake("phoenix", "--crash-on", str(crash)))
        async with following(client) as wait:
            crash.touch()
            (down,) = await wait(is_state(InstanceState.LOADING))
            assert "crashed" in (down.error or "")
            assert down.stage == "restarting in 1 s after a crash"
            (up,) = await wait(is_state(InstanceState.READY))
        assert up.error is None
        await client.unload(UnloadRequest(model_id="phoenix"))


async def test_a_nodes_events_keep_their_level_at_the_gateway(rig: NeuronRig):
    """The gateway's audit log records a node's events with the level that the node gave them."""
    async with running_gateway(neurons={"n1": rig.url}) as served, rig.client() as client:
        audit_log = served.gateway.audit_log
        async with asyncio.timeout(60):
            while not any(e.event == "node_up" for e in audit_log.since(0)):
                await asyncio.sleep(0.01)
            await client.load(fake("failing", "--exit-at-load", "3"))
            while not (failures := [e for e in audit_log.since(0) if e.event == "instance_failed"]):
                await asyncio.sleep(0.01)
        await client.unload(UnloadRequest(model_id="failing"))
    assert [(e.actor, e.level) for e in failures] == [("node n1", "warn")]
    levels = {e.event: e.level for e in audit_log.since(0)}
    assert levels["load_admitted"] == "info"


async def test_engine_failures_are_counted_once_by_kind(rig: NeuronRig, tmp_path: Path):
    """Failures while loading and while serving are counted at the node and its gateway, restarted engines included."""
    async with running_gateway(neurons={"n1": rig.url}) as served, rig.client() as client:
        await failed_load(client, "--exit-at-load", "3")
        await failed_load(client, "--oom-at-load")
        crash = tmp_path / "crash"
        await load(client, fake("counted", "--crash-on", str(crash)))
        async with following(client) as wait:
            crash.touch()
            await wait(is_state(InstanceState.LOADING))
            await wait(is_state(InstanceState.READY))
        await client.unload(UnloadRequest(model_id="counted"))
        async with httpx.AsyncClient(headers=rig.headers) as http, asyncio.timeout(60):
            of_node = await failures_at(http, f"{rig.url}/metrics")
            while await failures_at(http, f"{served.metrics_url}/metrics") != of_node:
                await asyncio.sleep(0.02)
    assert of_node["faulty", "out_of_memory"] >= 1
    assert of_node["counted", "crash"] == 1


async def failures_at(http: httpx.AsyncClient, url: str) -> dict[tuple[str, str], float]:
    """Return the engine failures in a daemon's metrics, by model and kind."""
    return {
        (s.labels["model"], s.labels["kind"]): s.value
        for family in text_string_to_metric_families((await http.get(url)).text)
        for s in family.samples
        if s.name.endswith("engine_failures_total")
    }


async def test_requests_in_flight_are_read_from_the_engines_metrics(rig: NeuronRig, tmp_path: Path):
    """Requests that bypass the neuron, such as those of a gateway on its host, are counted too."""
    async with rig.client() as client:
        spec = fake("busy", "--finish-on", str(tmp_path / "never"), harness="reporting")
        ready = await load(client, spec)
        async with engine_http(ready) as http:
            body = {"messages": [], "stream": True}
            request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await until(client, lambda models: models[0].in_flight == 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await until(client, lambda models: models[0].in_flight == 0)
        await client.unload(UnloadRequest(model_id="busy"))


async def test_an_engine_that_hangs_is_restarted(rig: NeuronRig):
    """An engine that runs but does not respond is killed and started again."""
    async with rig.client() as client:
        await load(client, fake("frozen", harness="watched"))
        (engine,) = rig.engines()
        async with following(client) as wait:
            engine.suspend()
            (down,) = await wait(is_state(InstanceState.LOADING))
            assert down.error == "the engine did not answer 3 consecutive health checks"
            await wait(is_state(InstanceState.READY))
        assert engine not in rig.engines()
        await client.unload(UnloadRequest(model_id="frozen"))


async def test_an_engine_that_fails_every_request_is_restarted(rig: NeuronRig):
    """An engine whose /health is ok, and which answers every request with 500, is replaced, counted and reported."""
    async with rig.client() as client, httpx.AsyncClient(headers=rig.headers) as http:
        model = await load(client, fake("useless", "--status", "500", harness="watched"))
        (engine,) = rig.engines()
        failed = InstanceUsage(
            instance_id=model.instance_id, failed=3, failed_in_row=3, reason="engine_500"
        )
        async with following(client) as wait:
            await client.report_usage(UsageReport(gateway="g", instances=(failed,)))
            (down,) = await wait(is_state(InstanceState.LOADING))
            assert down.error == "the engine failed 3 requests in a row (engine_500)"
            await wait(is_state(InstanceState.READY))
        assert engine not in rig.engines()
        assert (await failures_at(http, f"{rig.url}/metrics"))["useless", "failing"] == 1
        await client.unload(UnloadRequest(model_id="useless"))


async def test_a_restarting_instance_can_be_unloaded(rig: NeuronRig, tmp_path: Path):
    """Unloading during the restart delay removes the instance immediately."""
    async with rig.client() as client:
        crash = tmp_path / "crash"
        await load(client, fake("doomed", "--crash-on", str(crash)))
        async with following(client) as wait:
            crash.touch()
            await wait(is_state(InstanceState.LOADING))
        await client.unload(UnloadRequest(model_id="doomed"))
        assert await client.models() == ()


async def test_unload_during_a_load_stops_the_engine(rig: NeuronRig):
    """A pending load can be cancelled; its reservation is released."""
    async with rig.client() as client:
        await client.load(fake("hanging", "--hang-at-load"))
        await until(client, is_state(InstanceState.LOADING))
        await client.unload(UnloadRequest(model_id="hanging"))
        assert rig.engines() == []
        assert (await client.health()).devices[0].vram_reserved_mb == 0


async def test_another_process_on_the_port_is_not_the_engine(rig: NeuronRig, tmp_path: Path):
    """When another process answers on the engine's port, the instance moves to another port."""
    async with rig.client() as client:
        listen = tmp_path / "listen"
        answer = await client.load(fake("moved", "--listen-on", str(listen)))
        (loading,) = await until(client, is_state(InstanceState.LOADING))
        assert loading.instance_id == answer.instance_id
        taken = port_of(rig, answer.instance_id)
        async with await asyncio.start_server(_answer_ok, "127.0.0.1", taken):
            listen.touch()
            (ready,) = await until(client, is_state(InstanceState.READY))
        assert ready.url is not None
        assert not ready.url.endswith(f":{taken}")
        await client.unload(UnloadRequest(model_id="moved"))


async def _answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


def port_of(rig: NeuronRig, instance: str) -> int:
    """Return the port that an instance's engine was started with."""
    for process in rig.engines():
        if process.environ()["CORTEX_INSTANCE"] == instance:
            argv = process.cmdline()
            return int(argv[argv.index("--port") + 1])
    raise AssertionError(f"no engine of {instance}")


async def test_resident_memory_beyond_the_grant_is_counted(rig: NeuronRig):
    """An engine that allocates more than it was granted is counted with what it allocates."""
    async with rig.client() as client:
        ready = await load(client, fake("greedy", "--memory-mb", "300", vram_mb=100))
        assert ready.vram_used_mb >= 300
        reading = (await client.health()).devices[0]
        assert reading.vram_available_mb <= 700
        assert reading.vram_reserved_mb == 0
        await client.unload(UnloadRequest(model_id="greedy"))
        assert (await client.health()).devices[0].vram_available_mb == 1000


async def test_the_log_can_be_read_and_followed(rig: NeuronRig):
    """Tail and follow return the engine's output; an unknown instance is not found."""
    async with rig.client() as client:
        await load(client, fake("org/chatty", "--say", "hello from the engine"))
        async with httpx.AsyncClient(base_url=rig.url, headers=rig.headers) as http:
            text = (await http.get("/models/org/chatty/logs", params={"lines": 5})).text
            assert "hello from the engine" in text
            assert (await http.get("/models/org/chatty/logs", params={"lines": 1})).text.startswith(
                "listening on"
            )
            async with http.stream("GET", "/models/org/chatty/logs?follow=true&lines=1") as log:
                assert (await anext(log.aiter_lines())).startswith("listening on")
            missing = await http.get("/models/org/chatty/logs", params={"instance_id": "no"})
            assert missing.status_code == 404
        await client.unload(UnloadRequest(model_id="org/chatty"))
        with pytest.raises(ModelNotFound):
            await client.endpoint("org/chatty")


async def test_an_orphan_is_killed_at_the_next_start(tmp_path: Path):
    """An engine without a record, left by a killed neuron, does not survive the next start; other processes do."""
    rig = NeuronRig(tmp_path / "neuron").start()
    try:
        async with rig.client() as client:
            await load(client, fake("lost", "--ignore-term", "--child"))
            rig.stop(signal.SIGKILL)
        (record,) = (rig.directory / "state" / "instances").glob("*.json")
        record.unlink()
        assert len(rig.engines()) == 2
        rig.start()
        assert rig.engines() == []
        assert psutil.pid_exists(os.getpid())
    finally:
        rig.close()


async def test_the_record_of_an_ended_engine_is_removed(tmp_path: Path):
    """An engine that ended with its neuron is not adopted, and no memory is granted to it."""
    rig = NeuronRig(tmp_path / "neuron").start()
    try:
        async with rig.client() as client:
            await load(client, fake("dead"))
            rig.stop(signal.SIGKILL)
        for process in rig.engines():
            process.kill()
        wait_for(lambda: rig.engines() == [], 60)
        rig.start()
        async with rig.client() as client:
            assert await client.models() == ()
            assert (await client.health()).devices[0].vram_available_mb == 4000
        assert list((rig.directory / "state" / "instances").glob("*.json")) == []
    finally:
        rig.close()


async def test_on_stop_keep_leaves_engines_for_the_next_neuron(tmp_path: Path):
    """With on_stop = "keep" an engine keeps running, is adopted by the next neuron, and is restarted after a crash."""
    rig = NeuronRig(tmp_path / "neuron", neuron='on_stop = "keep"').start()
    try:
        async with rig.client() as client:
            before = await load(client, fake("kept"))
        assert await asyncio.to_thread(rig.stop) == 0
        (engine,) = rig.engines()
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{before.url}/health")).status_code == 200
        rig.start()
        async with rig.client() as client:
            (after,) = await until(client, is_state(InstanceState.READY))
            assert (after.instance_id, after.url) == (before.instance_id, before.url)
            async with following(client) as wait:
                engine.kill()
                await wait(is_state(InstanceState.LOADING))
                (again,) = await wait(is_state(InstanceState.READY))
            assert again.instance_id == before.instance_id
            await client.unload(UnloadRequest(model_id="kept"))
    finally:
        rig.close()
    assert rig.engines() == []


async def test_a_pending_load_is_adopted_too(tmp_path: Path):
    """The next neuron waits for an engine that was still loading when the previous neuron was killed."""
    rig = NeuronRig(tmp_path / "neuron").start()
    try:
        async with rig.client() as client:
            ready = tmp_path / "ready"
            await client.load(fake("slow", "--ready-on", str(ready)))
            await until(client, lambda models: models[0].stage == "loading")
        (engine,) = rig.engines()
        rig.stop(signal.SIGKILL)
        rig.start()
        async with rig.client() as client:
            assert (await client.models())[0].status is InstanceState.LOADING
            ready.touch()
            await until(client, is_state(InstanceState.READY))
        assert rig.engines() == [engine]
    finally:
        rig.close()


async def test_one_state_directory_has_one_neuron(tmp_path: Path):
    """A second neuron with the same directory does not start, and its error says why."""
    rig = NeuronRig(tmp_path / "neuron").start()
    second = NeuronRig(tmp_path / "neuron")
    try:
        with pytest.raises(AssertionError, match="another neuron uses"):
            second.start()
    finally:
        second.close()
        rig.close()
