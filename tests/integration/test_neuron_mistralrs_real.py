"""A neuron with a real mistralrs server, as a process and attached."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from engines.build_mistralrs import find
from engines.neuron_rig import NeuronRig, load, running, until, wait_for

from cortex_common.schema.instances import (
    InstanceState,
    LoadSpec,
    ModelInfo,
    RestartRequest,
    UnloadRequest,
)
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

BINARY = find()
pytestmark = [
    pytest.mark.mistralrs,
    pytest.mark.skipif(BINARY is None, reason="no mistralrs: run make engines ARGS=mistralrs"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the parent directory of two directories with a 2 MB model each."""
    directory = tmp_path_factory.mktemp("weights")
    for number, name in enumerate(("a", "b")):
        write_tiny_gguf(directory / name / "tiny.gguf", seed=number)
    return directory


async def streamed(model: ModelInfo, tokens: int) -> list[str]:
    """Return the data lines of a streamed answer."""
    body = {
        "model": model.served_as or model.id,
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": tokens,
        "stream": True,
    }
    async with httpx.AsyncClient(base_url=model.url or "", timeout=60) as http:
        answer = await http.post("/v1/chat/completions", json=body)
    return [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.compatibility("mistral.rs", "chat")
async def test_mistralrs_is_started_queried_and_stopped(tmp_path: Path, weights: Path):
    """A GGUF file is served by a process that the next neuron adopts, and no process is left after the unload."""
    rig = NeuronRig(tmp_path / "neuron")
    ports = f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    section = f'[[harnesses]]\nname = "mistralrs"\nbinary = "{BINARY}"\n{ports}'
    rig.config.write_text(rig.config.read_text() + section)
    for running_rig in running(rig):
        async with running_rig.client() as client:
            source = str(weights / "a" / "tiny.gguf")
            spec = LoadSpec(model_id="my/a", harness="mistralrs", source=source, vram_mb=500)
            ready = await load(client, spec, seconds=60)
            assert (ready.engine_version or "").startswith("mistral.rs 0.")
            assert ready.served_as == "default"
            data = await streamed(ready, 8)
            assert data[-1] == "[DONE]"
            assert json.loads(data[-2])["usage"]["completion_tokens"] == 8
            running_rig.stop(signal.SIGKILL)
        running_rig.start()
        async with running_rig.client() as client:
            models = await until(client, lambda ms: [m.status for m in ms] == [InstanceState.READY])
            assert (await streamed(models[0], 4))[-1] == "[DONE]"
            await client.unload(UnloadRequest(model_id="my/a"))
            assert running_rig.engines() == []
            bad = spec.model_copy(update={"model_id": "bad", "args": ("--no-such-flag",)})
            await client.load(bad)
            models = await until(client, lambda ms: any(m.error for m in ms))
            assert "did not accept its arguments" in (models[0].error or "")


class AttachedServer:
    """A mistralrs server, a fake systemctl that restarts it, and a neuron attached to it."""

    def __init__(self, directory: Path, weights: Path, *models: str) -> None:
        self.names = [str(weights / name) for name in models]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = f'command = "serve"\n[server]\nhost = "127.0.0.1"\nport = {self.port}\n'
        for name in self.names:
            config += (
                f'[[models]]\nkind = "text"\nmodel_id = "{name}"\n[models.device]\ncpu = true\n'
            )
            config += '[models.format]\nformat = "gguf"\nquantized_file = "tiny.gguf"\n'
        path = directory / "engine.toml"
        path.write_text(config)
        self.pid_file = directory / "pid"
        log = directory / "engine.log"
        bin_dir = directory / "bin"
        bin_dir.mkdir()
        self.systemctl = bin_dir / "systemctl"
        kill = f"[ -f {self.pid_file} ] && kill -9 $(cat {self.pid_file})"
        start = f"{BINARY} from-config -f {path}"
        if len(models) == 1:  # 0.8 can reload an unloaded model only in this mode
            start = f"{BINARY} serve --host 127.0.0.1 -p {self.port} --cpu"
            start += f" -m {self.names[0]} --format gguf -f tiny.gguf"
        start += f" >> {log} 2>&1 & echo $! > {self.pid_file}"
        self.systemctl.write_text(f"#!/bin/sh\n{kill}\n{start}\n")
        self.systemctl.chmod(self.systemctl.stat().st_mode | stat.S_IXUSR)
        self.rig = NeuronRig(directory / "neuron")
        section = f'[[harnesses]]\nname = "shared"\nkind = "attach"\nurl = "http://127.0.0.1:{self.port}"\n'
        section += 'unit = "mistralrs.service"\nhealth_interval_s = 0.5\nload_timeout_s = 20\n'
        self.rig.config.write_text(self.rig.config.read_text() + section)
        self._path = os.environ["PATH"]
        os.environ["PATH"] = f"{bin_dir}:{self._path}"

    def listens(self) -> bool:
        """Return whether the server listens."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """Stop the neuron, then the server."""
        self.rig.close()
        os.environ["PATH"] = self._path
        os.kill(int(self.pid_file.read_text()), signal.SIGKILL)
        wait_for(lambda: not self.listens(), 60)


@contextlib.contextmanager
def serving(directory: Path, weights: Path, *models: str) -> Iterator[AttachedServer]:
    """Start the server and the neuron."""
    server = AttachedServer(directory, weights, *models)
    try:
        subprocess.run([server.systemctl, "start", "it"], check=True)
        wait_for(server.listens, 60)
        server.rig.start()
        yield server
    finally:
        server.close()


def shared(name: str) -> LoadSpec:
    """Return a spec for the attached server."""
    return LoadSpec(model_id=name, harness="shared")


async def test_an_attached_mistralrs_is_unloaded_reloaded_and_recovered(
    tmp_path: Path, weights: Path
):
    """The real server has the bugs of the fake one, and is recovered from them."""
    with serving(tmp_path, weights, "a") as server:
        (name,) = server.names
        async with server.rig.client() as client, httpx.AsyncClient(timeout=60) as http:
            (model,) = await until(client, lambda ms: [bool(m.url) for m in ms] == [True])
            assert (await streamed(model, 5))[-1] == "[DONE]"
            await client.unload(UnloadRequest(model_id=name))
            assert await client.models() == ()
            again = await load(client, shared(name), seconds=60)
            assert (await streamed(again, 5))[-1] == "[DONE]"
            assert [e.cycles for e in await client.attached()] == [2]

            url = f"http://127.0.0.1:{server.port}/v1/models/reload"
            assert (await http.post(url, json={"model_id": name})).json()["status"] == "not_found"
            await until(client, lambda ms: any(m.status is InstanceState.FAILED for m in ms))
            await load(client, shared(name), seconds=60)
            assert [e.cycles for e in await client.attached()] == [0], (
                "it was recovered by a restart"
            )


async def test_a_model_lost_by_an_attached_mistralrs_is_recovered_by_a_restart(
    tmp_path: Path, weights: Path
):
    """With several models, 0.8 can't reload an unloaded one; a restart loads all of them."""
    with serving(tmp_path, weights, "a", "b") as server:
        first, second = server.names

        def both_ready(models: Sequence[ModelInfo]) -> bool:
            return sorted(m.id for m in models if m.url) == server.names

        async with server.rig.client() as client:
            await until(client, both_ready)
            await client.unload(UnloadRequest(model_id=first))
            assert [m.id for m in await client.models()] == [second]
            await client.load(shared(first))
            models = await until(client, lambda ms: any(m.error for m in ms))
            assert "only a restart recovers it" in next(m.error or "" for m in models if m.error)
            answer = await client.restart("shared", RestartRequest())
            assert (answer.status, list(answer.models)) == ("restarted", server.names)
            models = await until(client, both_ready)
            for model in models:
                if model.url:
                    assert (await streamed(model, 5))[-1] == "[DONE]"
