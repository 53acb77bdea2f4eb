"""Real neurons for tests: a process of its own, in a directory of its own, with its client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
from rigs.forked import Forked

from cortex_common.client.neuron import NeuronClient
from cortex_common.schema.instances import InstanceState, LoadSpec, ModelInfo

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


class NeuronRig:
    """A neuron process. Its engines carry its state directory's mark, so that `close` finds what it left."""

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
        self.process: Forked | None = None
        self.url = ""

    def start(self) -> NeuronRig:
        """Start the process and wait until it listens."""
        position = self.log.stat().st_size if self.log.exists() else 0
        self.log.touch()
        argv = ["serve", "neuron", "--config", str(self.config), "--log-format", "console"]
        self.process = Forked(argv, self.log, environ=os.environ)
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
        """End the process and return its status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(30)

    def client(self, token: str | None = None) -> NeuronClient:
        """A client of it."""
        return NeuronClient(self.url, who="node test", token=token)

    def engines(self) -> list[psutil.Process]:
        """All living processes that neurons of this directory started."""
        from neuron_server.state_store import owner_id

        mark = owner_id(self.directory / "state")
        return [p for p in psutil.process_iter() if marked(p, mark)]

    def close(self) -> None:
        """End everything, the hard way where needed."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for process in self.engines():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def marked(process: psutil.Process, owner: str) -> bool:
    """Whether a living process was started by neurons of that mark."""
    try:
        return (
            process.environ().get("CORTEX_NEURON") == owner
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return False


def wait_for(
    condition: Callable[[], bool], seconds: float, say: Callable[[], object] = lambda: ""
) -> None:
    """Wait for a condition outside of asyncio."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s: {say()}"
        time.sleep(0.02)


async def until(
    client: NeuronClient, condition: Callable[[Sequence[ModelInfo]], bool], seconds: float = 20.0
) -> tuple[ModelInfo, ...]:
    """Follow a neuron's events until its instances are as wanted."""
    latest: tuple[ModelInfo, ...] = ()
    try:
        async with asyncio.timeout(seconds):
            async with contextlib.aclosing(client.status_events()) as events:
                async for status in events:
                    latest = status.models
                    if condition(latest):
                        return latest
    except TimeoutError:
        raise AssertionError(f"still not so after {seconds} s: {latest}") from None
    raise AssertionError("the events ended")


async def load(client: NeuronClient, spec: LoadSpec, seconds: float = 30.0) -> ModelInfo:
    """Load an instance and wait until it is ready; a failed load fails the test with its reason."""
    answer = await client.load(spec)

    def settled(models: Sequence[ModelInfo]) -> bool:
        mine = [m for m in models if m.instance_id == answer.instance_id]
        return bool(mine) and mine[0].status in {InstanceState.READY, InstanceState.FAILED}

    models = await until(client, settled, seconds)
    mine = next(m for m in models if m.instance_id == answer.instance_id)
    assert mine.status is InstanceState.READY, mine.error
    return mine


async def lines_of(model: ModelInfo, tokens: int, first: asyncio.Event) -> list[str]:
    """All data lines of a long stream; `first` is set when it has begun."""
    body = {
        "model": model.id,
        "messages": [{"role": "user", "content": "go"}],
        "max_tokens": tokens,
        "stream": True,
    }
    found: list[str] = []
    async with (
        httpx.AsyncClient(base_url=model.url or "", timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(line[6:])
                first.set()
    return found


def fake(model: str, *args: str, vram_mb: int = 100, **more: object) -> LoadSpec:
    """A spec of the fake engine with some faults."""
    return LoadSpec.model_validate(
        {"model_id": model, "harness": "fake", "args": args, "vram_mb": vram_mb} | more
    )


def running(rig: NeuronRig) -> Iterator[NeuronRig]:
    """For fixtures: a started neuron, and nothing of it left at the end."""
    try:
        yield rig.start()
    finally:
        rig.close()
