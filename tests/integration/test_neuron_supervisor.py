"""The supervisor against engines that misbehave: the fake engine process with scripted faults."""

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
from engines.neuron_rig import NeuronRig, fake, load, running, until, wait_for
from prometheus_client.parser import text_string_to_metric_families
from rigs.whole import running_gateway

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import ModelNotFound, Unavailable
from cortex_common.schema.instances import InstanceState, ModelInfo, UnloadRequest
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.process_table import read_process

HEAD = """
import signal, subprocess, sys
worker = "import sys; sys.stdin.read(); open(sys.argv[1], 'w').write('by my head')"
child = subprocess.Popen([sys.executable, "-c", worker, sys.argv[1]], stdin=subprocess.PIPE)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
child.communicate()
"""
"""An engine whose worker ends, having given back what it holds, when its head closes a pipe."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NeuronRig]:
    """A neuron whose engines get one second to stop; "hasty" ones little time, "telling" ones say how busy they are."""
    directory = tmp_path_factory.mktemp("neuron")
    rig = NeuronRig(directory, memory_mb=1000)
    config = rig.config.read_text()
    plain = config.split("[[harnesses]]")[2]
    for name, more in (
        ("hasty", "load_timeout_s = 1.5\nhealth_every_s = 0.2\n"),
        ("telling", 'running_metrics = ["fake_running"]\n'),
    ):
        config += "[[harnesses]]" + plain.replace('name = "fake"', f'name = "{name}"') + more
    rig.config.write_text(config)
    yield from running(rig)


def is_state(state: InstanceState) -> Callable[[Sequence[ModelInfo]], bool]:
    """Whether the only instance is in a state."""
    return lambda models: bool(models) and models[0].status is state


async def failure_of(client: NeuronClient, *faults: str, **more: object) -> str:
    """Load an engine that fails, and return what the neuron says about it."""
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
    ("faults", "said"),
    [
        (("--exit-at-load", "3", "--say", "no such layer"), "engine crashed (exit status 3)"),
        (("--oom-at-load",), "the engine ran out of memory (exit status 1)"),
        (("--crash-at-load",), "the engine crashed (SIGABRT)"),
        (("--no-such-flag",), "did not accept its arguments (exit status 2)"),
        (("--exit-at-load", "0"), "the engine exited by itself (exit status 0)"),
    ],
)
async def test_an_engine_that_fails_to_load_is_classified(
    rig: NeuronRig, faults: tuple[str, ...], said: str
):
    """The way an engine ended and its last words are in the error, and its promise is returned."""
    async with rig.client() as client:
        assert said in await failure_of(client, *faults)


async def test_the_last_words_of_an_engine_are_in_the_error(rig: NeuronRig):
    """What the engine printed before it died is what an operator reads."""
    async with rig.client() as client:
        said = await failure_of(
            client, "--exit-at-load", "1", "--say", "tensor foo has wrong shape"
        )
    assert said.endswith("tensor foo has wrong shape")


async def test_a_load_beyond_its_deadline_is_given_up(rig: NeuronRig):
    """An engine that hangs while it loads is killed at the operator's limit."""
    async with rig.client() as client:
        said = await failure_of(client, "--hang-at-load", harness="hasty")
    assert said == "the engine was not ready after 2 s: nothing answers at its port"
    assert rig.engines() == []


async def test_a_failed_load_can_be_repeated(rig: NeuronRig):
    """A new load of a failed model replaces the failed instance."""
    async with rig.client() as client:
        await client.load(fake("again", "--exit-at-load", "1"))
        await until(client, is_state(InstanceState.FAILED))
        await load(client, fake("again"))
        assert len(await client.models()) == 1
        await client.unload(UnloadRequest(model_id="again"))


async def test_an_engine_that_ignores_sigterm_is_gone_with_its_children(rig: NeuronRig):
    """Within its deadline everything that the engine started is killed, and the books are as before."""
    async with rig.client() as client:
        before = (await client.health()).devices[0].vram_available_mb
        await load(client, fake("tough", "--ignore-term", "--child", "--daemon-child"))
        assert len(rig.engines()) == 3
        begun = asyncio.get_running_loop().time()
        await client.unload(UnloadRequest(model_id="tough"))
        assert asyncio.get_running_loop().time() - begun < 5
        assert rig.engines() == []
        assert (await client.health()).devices[0].vram_available_mb == before


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where the worker of an engine writes who ended it."""
    return tmp_path / "told"


@pytest.fixture
def head(told: Path) -> subprocess.Popen[bytes]:
    """An engine that runs."""
    argv = [sys.executable, "-c", HEAD, str(told)]
    head = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE)
    assert head.stdout is not None
    with head.stdout as output:
        assert output.readline() == b"up\n"
    return head


async def test_the_head_alone_is_asked_to_end(head: subprocess.Popen[bytes], told: Path):
    """It ends its workers itself, as SGLang does: one that is told with it can't give back what it holds."""
    process = read_process(head.pid)
    assert process is not None
    engine = EngineProcess(head.pid, process.started_ticks, f"TOLD={told}", child=head)
    await engine.stop(signal.SIGTERM, 20)
    assert engine.status == 0
    assert await asyncio.to_thread(told.read_text) == "by my head"


async def test_children_of_a_crashed_engine_are_killed(rig: NeuronRig, tmp_path: Path):
    """When the head dies, what it left behind goes too before the engine starts again."""
    once = tmp_path / "died"
    async with rig.client() as client:
        ready = await load(
            client, fake("head", "--child", "--die-after", "0.8", "--die-once", str(once))
        )
        children = set(rig.engines())
        assert len(children) == 2
        await until(client, is_state(InstanceState.LOADING))
        models = await until(client, is_state(InstanceState.READY))
        assert models[0].instance_id == ready.instance_id
        assert len(rig.engines()) == 2
        assert not children & set(rig.engines())
        await client.unload(UnloadRequest(model_id="head"))


async def test_a_crashed_engine_comes_back_with_back_off(rig: NeuronRig, tmp_path: Path):
    """An engine that was ready before is restarted after a second, and the reason stays to be seen meanwhile."""
    async with rig.client() as client:
        await load(
            client, fake("phoenix", "--die-after", "0.6", "--die-once", str(tmp_path / "died"))
        )
        (down,) = await until(client, is_state(InstanceState.LOADING))
        assert "crashed" in (down.error or "")
        assert down.stage == "restarting in 1 s after a crash"
        (up,) = await until(client, is_state(InstanceState.READY))
        assert up.error is None
        await client.unload(UnloadRequest(model_id="phoenix"))


async def test_a_crash_is_as_grave_at_the_gateway_as_on_its_node(rig: NeuronRig):
    """The gateway's trail tells what a node saw with the level that the node gave it."""
    async with running_gateway(neurons={"n1": rig.url}) as served, rig.client() as client:
        audit_log = served.gateway.audit_log
        async with asyncio.timeout(20):
            while not any(e.event == "node_up" for e in audit_log.since(0)):
                await asyncio.sleep(0.01)
            await client.load(fake("grave", "--exit-at-load", "3"))
            while not (told := [e for e in audit_log.since(0) if e.event == "instance_failed"]):
                await asyncio.sleep(0.01)
        await client.unload(UnloadRequest(model_id="grave"))
    assert [(e.actor, e.level) for e in told] == [("node n1", "warn")]
    levels = {e.event: e.level for e in audit_log.since(0)}
    assert levels["load_admitted"] == "info"


async def test_each_failure_of_an_engine_is_counted_once_by_its_kind(
    rig: NeuronRig, tmp_path: Path
):
    """Loading or serving, at the node and at its gateway; an engine that comes back is counted, too."""
    async with running_gateway(neurons={"n1": rig.url}) as served, rig.client() as client:
        await failure_of(client, "--exit-at-load", "3")
        await failure_of(client, "--oom-at-load")
        once = str(tmp_path / "died")
        await load(client, fake("counted", "--die-after", "0.3", "--die-once", once))
        await until(client, is_state(InstanceState.LOADING))
        await until(client, is_state(InstanceState.READY))
        await client.unload(UnloadRequest(model_id="counted"))
        async with httpx.AsyncClient() as http, asyncio.timeout(20):
            of_node = await failures_at(http, f"{rig.url}/metrics")
            while await failures_at(http, f"{served.metrics_url}/metrics") != of_node:
                await asyncio.sleep(0.02)
    assert of_node["faulty", "out_of_memory"] >= 1
    assert of_node["counted", "crash"] == 1


async def failures_at(http: httpx.AsyncClient, url: str) -> dict[tuple[str, str], float]:
    """What a daemon's metrics say about engines that failed, by model and kind."""
    return {
        (s.labels["model"], s.labels["kind"]): s.value
        for family in text_string_to_metric_families((await http.get(url)).text)
        for s in family.samples
        if s.name.endswith("engine_failures_total")
    }


async def test_an_engine_tells_its_requests_where_its_metrics_are_named(rig: NeuronRig):
    """Those of a gateway on the same host pass by the neuron, and count for its other gateways all the same."""
    async with rig.client() as client:
        spec = fake("busy", "--interval", "0.05", "--tokens", "400", harness="telling")
        ready = await load(client, spec)
        async with httpx.AsyncClient(base_url=ready.url or "", timeout=20) as http:
            body = {"messages": [], "stream": True}
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await until(client, lambda models: models[0].in_flight == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(client, lambda models: models[0].in_flight == 0)
        await client.unload(UnloadRequest(model_id="busy"))


async def test_an_engine_that_hangs_is_restarted(rig: NeuronRig):
    """A process that lives but answers nothing is killed and started again."""
    async with rig.client() as client:
        await load(client, fake("frozen", harness="hasty"))
        (engine,) = rig.engines()
        engine.suspend()
        (down,) = await until(client, is_state(InstanceState.LOADING))
        assert down.error == "the engine did not answer 3 consecutive health checks"
        await until(client, is_state(InstanceState.READY))
        assert engine not in rig.engines()
        await client.unload(UnloadRequest(model_id="frozen"))


async def test_a_restarting_instance_can_be_unloaded(rig: NeuronRig):
    """Unloading while the back-off runs ends the instance at once."""
    async with rig.client() as client:
        await load(client, fake("doomed", "--die-after", "0.6"))
        await until(client, is_state(InstanceState.LOADING))
        await client.unload(UnloadRequest(model_id="doomed"))
        assert await client.models() == ()


async def test_unload_during_a_load_ends_the_engine(rig: NeuronRig):
    """A load under way can be called off; its promise is returned."""
    async with rig.client() as client:
        await client.load(fake("hanging", "--hang-at-load"))
        await until(client, is_state(InstanceState.LOADING))
        await client.unload(UnloadRequest(model_id="hanging"))
        assert rig.engines() == []
        assert (await client.health()).devices[0].vram_reserved_mb == 0


async def test_a_stranger_on_the_port_is_not_taken_for_the_engine(rig: NeuronRig):
    """When another process answers on the engine's port, the instance moves to another port."""
    async with rig.client() as client:
        answer = await client.load(fake("moved", "--listen-after", "1"))
        (loading,) = await until(client, is_state(InstanceState.LOADING))
        assert loading.instance_id == answer.instance_id
        taken = port_of(rig, answer.instance_id)
        stranger = await asyncio.start_server(_answer_ok, "127.0.0.1", taken)
        async with stranger:
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
    """The port that an instance's engine was started with."""
    for process in rig.engines():
        if process.environ()["CORTEX_INSTANCE"] == instance:
            words = process.cmdline()
            return int(words[words.index("--port") + 1])
    raise AssertionError(f"no engine of {instance}")


async def test_resident_memory_is_in_the_books(rig: NeuronRig):
    """An engine that takes more than it was promised is counted with what it takes."""
    async with rig.client() as client:
        ready = await load(client, fake("greedy", "--memory-mb", "300", vram_mb=100))
        assert ready.vram_used_mb >= 300
        reading = (await client.health()).devices[0]
        assert reading.vram_available_mb <= 700
        assert reading.vram_reserved_mb == 0
        await client.unload(UnloadRequest(model_id="greedy"))
        assert (await client.health()).devices[0].vram_available_mb == 1000


async def test_the_log_can_be_read_and_followed(rig: NeuronRig):
    """Tail and follow give the engine's own output, and a log is bounded."""
    async with rig.client() as client:
        await load(client, fake("org/chatty", "--say", "hello from the engine"))
        async with httpx.AsyncClient(base_url=rig.url) as http:
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


async def test_a_true_orphan_is_killed_at_the_next_start(tmp_path: Path):
    """An engine without a record, left by a killed neuron, does not survive the next start; a stranger does."""
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


async def test_a_record_of_a_dead_engine_is_cleaned(tmp_path: Path):
    """An engine that died with its neuron is not adopted, and its memory is not promised."""
    rig = NeuronRig(tmp_path / "neuron").start()
    try:
        async with rig.client() as client:
            await load(client, fake("dead"))
            rig.stop(signal.SIGKILL)
        for process in rig.engines():
            process.kill()
        wait_for(lambda: rig.engines() == [], 5)
        rig.start()
        async with rig.client() as client:
            assert await client.models() == ()
            assert (await client.health()).devices[0].vram_available_mb == 4000
        assert list((rig.directory / "state" / "instances").glob("*.json")) == []
    finally:
        rig.close()


async def test_on_stop_keep_leaves_engines_for_the_next_neuron(tmp_path: Path):
    """With on_stop = "keep" a stopped neuron's engine serves on and is adopted; a crash of it is then restarted."""
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
            engine.kill()
            await until(client, is_state(InstanceState.LOADING))
            (again,) = await until(client, is_state(InstanceState.READY))
            assert again.instance_id == before.instance_id
            await client.unload(UnloadRequest(model_id="kept"))
    finally:
        rig.close()
    assert rig.engines() == []


async def test_a_load_under_way_is_adopted_too(tmp_path: Path):
    """An engine that was still loading when its neuron died is waited for by the next one."""
    rig = NeuronRig(tmp_path / "neuron").start()
    try:
        async with rig.client() as client:
            await client.load(fake("slow", "--loading", "3"))
            await until(client, lambda models: models[0].stage == "loading")
        (engine,) = rig.engines()
        rig.stop(signal.SIGKILL)
        rig.start()
        async with rig.client() as client:
            assert (await client.models())[0].status is InstanceState.LOADING
            await until(client, is_state(InstanceState.READY))
        assert rig.engines() == [engine]
    finally:
        rig.close()


async def test_one_state_directory_has_one_neuron(tmp_path: Path):
    """A second neuron on the same directory refuses to start and says why."""
    rig = NeuronRig(tmp_path / "neuron").start()
    second = NeuronRig(tmp_path / "neuron")
    try:
        with pytest.raises(AssertionError, match="another neuron uses"):
            second.start()
    finally:
        second.close()
        rig.close()
