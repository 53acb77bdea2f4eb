"""mistral.rs as a process and attached, against the stand-in written from its fact sheet."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import FAKE_ENGINE, NeuronRig, load, running, until, wait_for

from cortex_common.errors import Conflict, LoadFailed, NotFound, NotSupported, Unavailable
from cortex_common.models import InstanceState, LoadSpec, RestartRequest, UnloadRequest
from neuron_server.engines.tiny import write_tiny_gguf

STAND_IN = FAKE_ENGINE.with_name("fake_mistralrs.py")


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def process_rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """A neuron whose mistralrs program is the stand-in."""
    program = script(tmp_path / "mistralrs", f'exec {sys.executable} {STAND_IN} "$@"')
    rig = NeuronRig(tmp_path / "neuron")
    section = f'[[harnesses]]\nname = "mistralrs"\nbinary = "{program}"\n'
    rig.config.write_text(
        rig.config.read_text() + section + f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    )
    yield from running(rig)


class Attached:
    """A running stand-in with two models, a "unit" that restarts it, and a neuron attached to it."""

    def __init__(self, directory: Path, *, refuse: str = "", unit: bool = True) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.pid_file = directory / "engine.pid"
        start = f"{sys.executable} {STAND_IN} attach --models org/a,org/b --refuse={refuse} --host 127.0.0.1"
        start += f" -p {self.port} --load-s 0.2 --pid-file {self.pid_file}"
        bin_dir = directory / "bin"
        bin_dir.mkdir()
        self.calls = directory / "systemctl.calls"
        restart = f"[ -f {self.pid_file} ] && kill -9 $(cat {self.pid_file}) 2>/dev/null\n{start} >/dev/null 2>&1 &"
        script(bin_dir / "systemctl", f'echo "$@" >> {self.calls}\n{restart}')
        self.url = f"http://127.0.0.1:{self.port}"
        self.systemctl = bin_dir / "systemctl"
        self.rig = NeuronRig(directory / "neuron")
        section = f'[[harnesses]]\nname = "shared"\nkind = "attach"\nurl = "{self.url}"\n'
        section += "load_timeout_s = 4.0\nhealth_every_s = 0.3\n"
        section += 'unit = "mistralrs.service"\n' if unit else ""
        self.rig.config.write_text(self.rig.config.read_text() + section)
        os.environ["PATH"], self.path = f"{bin_dir}:{os.environ['PATH']}", os.environ["PATH"]

    def start_engine(self) -> None:
        """What an operator does before the neuron comes."""
        subprocess.run([self.systemctl, "start", "it"], check=True)
        wait_for(self.answers, 10)

    def answers(self) -> bool:
        """Whether the engine listens."""
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """End the neuron, then the engine."""
        self.rig.close()
        os.environ["PATH"] = self.path
        if self.pid_file.exists():
            os.kill(int(self.pid_file.read_text()), signal.SIGKILL)
            wait_for(lambda: not self.answers(), 5)


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attached]:
    """An engine of someone else's, with a unit."""
    found = Attached(tmp_path)
    try:
        found.start_engine()
        found.rig.start()
        yield found
    finally:
        found.close()


def shared(model: str, **more: object) -> LoadSpec:
    """A spec of the attached engine."""
    return LoadSpec.model_validate({"model_id": model, "harness": "shared"} | more)


async def statuses(url: str) -> dict[str, str]:
    """What the engine itself says about its models."""
    async with httpx.AsyncClient(base_url=url) as http:
        return {
            name: (await http.post("/v1/models/status", json={"model_id": name})).json()["status"]
            for name in ("org/a", "org/b")
        }


async def test_mistralrs_serves_one_model_a_process(process_rig: NeuronRig, tmp_path: Path):
    """A local file is served as "default", a repository under its own name, each by a process of its own."""
    weights = write_tiny_gguf(tmp_path / "weights" / "tiny.gguf")
    async with process_rig.client() as client:
        local = LoadSpec(model_id="my/name", harness="mistralrs", source=str(weights), vram_mb=300)
        ready = await load(client, local)
        assert ready.served_as == "default"
        assert ready.engine_version == "mistral.rs 0.9.2"
        remote = await load(client, LoadSpec(model_id="org/repo", harness="mistralrs", vram_mb=300))
        assert remote.served_as is None
        assert remote.url != ready.url
        async with httpx.AsyncClient() as http:
            for model, name in ((ready, "default"), (remote, "org/repo")):
                body = {"model": name, "messages": [], "max_tokens": 3}
                answer = await http.post(f"{model.url}/v1/chat/completions", json=body)
                assert "data: [DONE]" in answer.text
        await client.unload(UnloadRequest(model_id="my/name", drain_seconds=1))
        await client.unload(UnloadRequest(model_id="org/repo"))
    assert process_rig.engines() == []


async def test_an_attached_engines_models_are_instances(attached: Attached):
    """What is loaded in someone else's engine shows up; "default" and repetitions do not."""
    async with attached.rig.client() as client:
        models = await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        assert sorted(m.id for m in models) == ["org/a", "org/b"]
        assert {m.url for m in models} == {attached.url}
        assert {m.harness for m in models} == {"shared"}


async def test_attached_models_are_unloaded_and_reloaded(attached: Attached):
    """Unload and load use the engine's own calls, and never a reload of what is loaded."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        assert await statuses(attached.url) == {"org/a": "unloaded", "org/b": "loaded"}
        assert [m.id for m in await client.models()] == ["org/b"]
        await load(client, shared("mine", source="org/a"))
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}
        mine = next(m for m in await client.models() if m.id == "mine")
        assert mine.served_as == "org/a"
        await asyncio.gather(*(client.load(shared("org/b")) for _ in range(5)))
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_stopping_the_neuron_leaves_an_attached_engine_alone(attached: Attached):
    """Its models stay loaded: the engine is someone else's."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
    assert await asyncio.to_thread(attached.rig.stop) == 0
    assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_a_model_unloaded_by_others_is_no_longer_ready(attached: Attached):
    """The neuron notices what happens to the engine behind its back."""
    async with attached.rig.client() as client, httpx.AsyncClient(base_url=attached.url) as http:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await http.post("/v1/models/unload", json={"model_id": "org/a"})
        models = await until(client, lambda ms: any(m.status is InstanceState.FAILED for m in ms))
        failed = next(m for m in models if m.status is InstanceState.FAILED)
        assert failed.id == "org/a"
        assert failed.error == "somebody else unloaded it"
        with pytest.raises(Unavailable):
            await client.endpoint("org/a")


async def test_a_model_stuck_in_reloading_is_cured_by_a_restart(attached: Attached):
    """The engine's own bug is recognised, and the unit is restarted."""
    async with attached.rig.client() as client, httpx.AsyncClient(base_url=attached.url) as http:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await http.post("/v1/models/reload", json={"model_id": "org/a"})
        assert (await statuses(attached.url))["org/a"] == "reloading"
        await until(client, lambda ms: any(m.status is InstanceState.FAILED for m in ms))
        await load(client, shared("org/a"))
        assert "--no-ask-password restart mistralrs.service" in attached.calls.read_text()
        assert await statuses(attached.url) == {"org/a": "loaded", "org/b": "loaded"}


async def test_an_attached_engine_is_restarted_once_however_many_ask(attached: Attached):
    """All its models come back, its cycles begin anew, and who asks by cycles changes nothing a second time."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        await client.load(shared("org/a"))
        with pytest.raises(Conflict, match="is loading"):
            await client.restart("shared", RestartRequest())
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/b"))
        assert [(e.harness, e.cycles) for e in await client.attached()] == [("shared", 3)]
        wanted = RestartRequest(min_cycles=3, cut=False)
        answers = await asyncio.gather(*(client.restart("shared", wanted) for _ in range(3)))
        assert {(a.status, a.models) for a in answers} == {("restarted", ("org/a", "org/b"))}
        assert attached.calls.read_text().count(" restart ") == 1
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        assert (await client.restart("shared", wanted)).status == "kept"
        assert attached.calls.read_text().count(" restart ") == 1


async def test_a_failed_restart_says_why_and_its_models_serve_on(attached: Attached):
    """What systemd says is passed on, what never went away serves on, and the next neuron knows its cycles."""
    async with attached.rig.client() as client:
        await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
        await client.unload(UnloadRequest(model_id="org/a"))
        script(attached.systemctl, "echo Interactive authentication required. >&2; exit 1")
        with pytest.raises(LoadFailed, match=r"Interactive authentication required\."):
            await client.restart("shared", RestartRequest(min_cycles=1))
        await until(client, lambda ms: len(ms) == 1 and all(m.url for m in ms))
    await asyncio.to_thread(attached.rig.stop)
    await asyncio.to_thread(attached.rig.start)
    async with attached.rig.client() as client:
        assert [(e.cycles, e.reachable) for e in await client.attached()] == [(1, True)]
        with pytest.raises(NotSupported, match="nothing to restart"):
            await client.restart("fake", RestartRequest())
        with pytest.raises(NotFound, match="no harness 'share'"):
            await client.restart("share", RestartRequest())


async def test_an_unknown_model_of_an_attached_engine_is_explained(attached: Attached):
    """A model that the engine was not started with can't be loaded, and the error says what to do."""
    async with attached.rig.client() as client:
        await client.load(shared("org/c"))
        models = await until(client, lambda ms: any(m.id == "org/c" and m.error for m in ms))
        error = next(m.error for m in models if m.id == "org/c")
        assert "was not configured with 'org/c'" in (error or "")


async def test_a_refused_reload_and_a_dead_engine_without_unit_say_so(tmp_path: Path):
    """The engine's own error text is passed on; without a unit nobody can restart it."""
    found = Attached(tmp_path, refuse="org/b", unit=False)
    try:
        found.start_engine()
        found.rig.start()
        async with found.rig.client() as client:
            await until(client, lambda ms: len(ms) == 2 and all(m.url for m in ms))
            with pytest.raises(NotSupported, match="nobody told this node"):
                await client.restart("shared", RestartRequest())
            await client.unload(UnloadRequest(model_id="org/b"))
            await client.load(shared("org/b"))
            models = await until(client, lambda ms: any(m.error for m in ms))
            assert "CUDA out of memory" in next(m.error or "" for m in models if m.error)
            os.kill(int(found.pid_file.read_text()), signal.SIGKILL)
            found.pid_file.unlink()
            await until(client, lambda ms: all(m.status is InstanceState.FAILED for m in ms))
            await client.load(shared("org/a"))
            models = await until(
                client, lambda ms: any("no unit is configured" in (m.error or "") for m in ms)
            )
            assert models
    finally:
        found.close()
