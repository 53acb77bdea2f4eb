"""Neuron processes for tests, each with a directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
from rigs.forkserver import CortexProcess

from cortex_common.client.neuron import NeuronClient
from cortex_common.net.runtime_dir import read_neuron_token
from cortex_common.schema.instances import InstanceState, LoadSpec, ModelInfo

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


class NeuronRig:
    """A neuron process; `close` finds its remaining engines by the marker of its state directory."""

    def __init__(
        self,
        directory: Path,
        *,
        memory_mb: int = 4000,
        harnesses: str = "",
        neuron: str = "",
        listen: str = "127.0.0.1:0",
    ) -> None:
        self.directory = directory
        self.config = directory / "neuron.toml"
        self.log = directory / "neuron.log"
        first = 20000 + os.getpid() * 97 % 20000  # parallel test processes take different ports
        self.ports = (first, first + 99)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f"""
[neuron]
listen = "{listen}"
state_dir = "{directory / "state"}"
{neuron}
[cpu]
offer = true
memory_mb = {memory_mb}
[[harnesses]]
name = "embedded"
port_range = [{first}, {first + 99}]
[[harnesses]]
name = "fake"
kind = "command"
command = ["{sys.executable}", "{FAKE_ENGINE}", "--host", "{{host}}", "--port", "{{port}}", "--model", "{{model}}"]
port_range = [{first}, {first + 99}]
stop_timeout_s = 1.0
{harnesses}
""",
            encoding="utf-8",
        )
        self.process: CortexProcess | None = None
        self.url = ""

    def start(self) -> NeuronRig:
        """Start the process and wait until it listens."""
        position = self.log.stat().st_size if self.log.exists() else 0
        self.log.touch()
        argv = ["serve", "neuron", "--config", str(self.config), "--log-format", "console"]
        self.process = CortexProcess(argv, self.log, environ=os.environ)
        text = ""

        def listening() -> bool:
            nonlocal text
            text = self.log.read_bytes()[position:].decode()
            assert self.process is not None
            assert self.process.poll() is None, text
            return "neuron_listening" in text

        wait_for(listening, 20.0, lambda: text)
        found = re.search(r"neuron_listening url=(\S+)", text)
        assert found is not None
        self.url = found[1].replace("0.0.0.0", "127.0.0.1")
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the process and return its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(30)

    @property
    def token(self) -> str:
        """The token that it has published on this host."""
        token = read_neuron_token(self.url, os.environ)
        assert token is not None
        return token

    @property
    def headers(self) -> dict[str, str]:
        """Headers with its token."""
        return {"authorization": f"Bearer {self.token}"}

    def client(self, token: str | None = None) -> NeuronClient:
        """Return a client of the neuron, by default with its token."""
        return NeuronClient(self.url, who="node test", token=token or self.token)

    def engines(self) -> list[psutil.Process]:
        """Return all running processes that neurons of this directory started."""
        from neuron_server.state_store import owner_id

        owner = owner_id(self.directory / "state")
        return [p for p in psutil.process_iter() if is_engine_of(p, owner)]

    def close(self) -> None:
        """Stop the neuron, and kill its remaining engines."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for process in self.engines():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def is_engine_of(process: psutil.Process, owner: str) -> bool:
    """Return whether a running process was started by neurons with an owner id."""
    try:
        return (
            process.environ().get("CORTEX_NEURON") == owner
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return False


def wait_for(
    condition: Callable[[], bool], seconds: float, context: Callable[[], object] = lambda: ""
) -> None:
    """Wait for a condition without asyncio."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not met after {seconds} s: {context()}"
        time.sleep(0.02)


Condition = Callable[[Sequence[ModelInfo]], bool]


@contextlib.asynccontextmanager
async def following(
    client: NeuronClient, seconds: float = 60.0
) -> AsyncIterator[Callable[[Condition], Awaitable[tuple[ModelInfo, ...]]]]:
    """Subscribe to a neuron's events; yield a function that waits until its instances meet a condition.

    Calls of that function miss no change in between, however short.
    """
    async with contextlib.aclosing(client.watch_status()) as events:
        latest = (await anext(events)).models

        async def wait(condition: Condition) -> tuple[ModelInfo, ...]:
            nonlocal latest
            try:
                async with asyncio.timeout(seconds):
                    while not condition(latest):
                        latest = (await anext(events)).models
            except TimeoutError:
                raise AssertionError(f"not met after {seconds} s: {latest}") from None
            return latest

        yield wait


async def until(
    client: NeuronClient, condition: Condition, seconds: float = 60.0
) -> tuple[ModelInfo, ...]:
    """Follow a neuron's events until its instances meet a condition."""
    async with following(client, seconds) as wait:
        return await wait(condition)


async def load(client: NeuronClient, spec: LoadSpec, seconds: float = 60.0) -> ModelInfo:
    """Load an instance and wait until it is ready; fail the test with the reason if the load fails."""
    answer = await client.load(spec)

    def finished(models: Sequence[ModelInfo]) -> bool:
        found = [m for m in models if m.instance_id == answer.instance_id]
        return bool(found) and found[0].status in {InstanceState.READY, InstanceState.FAILED}

    models = await until(client, finished, seconds)
    model = next(m for m in models if m.instance_id == answer.instance_id)
    assert model.status is InstanceState.READY, model.error
    return model


def engine_http(model: ModelInfo) -> httpx.AsyncClient:
    """Return a client of an instance's engine, with its key."""
    headers = {"authorization": f"Bearer {model.api_key}"} if model.api_key else {}
    return httpx.AsyncClient(base_url=model.url or "", timeout=60, headers=headers)


async def lines_of(model: ModelInfo, tokens: int, first: asyncio.Event) -> list[str]:
    """Return all data lines of a stream; `first` is set when the first has arrived."""
    body = {
        "model": model.id,
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": tokens,
        "stream": True,
    }
    lines: list[str] = []
    async with (
        engine_http(model) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                lines.append(line[6:])
                first.set()
    return lines


def fake(model: str, *args: str, vram_mb: int = 100, **more: object) -> LoadSpec:
    """Return a spec for the fake engine with some of its options."""
    return LoadSpec.model_validate(
        {"model_id": model, "harness": "fake", "args": args, "vram_mb": vram_mb} | more
    )


def running(rig: NeuronRig) -> Iterator[NeuronRig]:
    """Start a neuron for a fixture, and close it at the end."""
    try:
        yield rig.start()
    finally:
        rig.close()
