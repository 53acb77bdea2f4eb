"""A complete fleet for tests: real `cortex serve` processes, the real embedded engine, tiny models, free ports."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import httpx
import psutil

from cortex_common.client.gateway import OperatorClient
from cortex_common.client.neuron import NeuronClient
from cortex_common.net.runtime_dir import read_neuron_token
from cortex_common.schema.fleet import FleetSnapshot
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf
from rigs.forkserver import CortexProcess

MODELS = ("tiny/ada", "tiny/bob", "tiny/cleo")
MODEL_MB = 256
"""MiB reserved for each tiny model: an interpreter, the engine and a few MiB of weights."""


@cache
def tiny_models() -> dict[str, Path]:
    """Return the files of three tiny models, which are written once per test run."""
    folder = Path(mkdtemp(prefix="cortex-test-models-"))
    atexit.register(shutil.rmtree, folder)
    return {
        name: write_tiny_gguf(folder / f"{name.replace('/', '-')}.gguf", seed=seed, name=name)
        for seed, name in enumerate(MODELS, start=1)
    }


def free_port() -> int:
    """Return a free port outside the range that the kernel uses for outgoing connections."""
    while True:
        port = random.randrange(10_000, 20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Service:
    """One `cortex serve` process.

    Attributes:
        argv: arguments after `cortex`.
        url: base URL of the service.
        log: file of its stderr.
    """

    argv: list[str]
    url: str
    log: Path
    process: CortexProcess | None = None

    def start(self) -> None:
        """Start it, also after it has stopped."""
        self.process = CortexProcess(self.argv, self.log)

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send a signal, wait until it exits, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(seconds)

    async def wait_healthy(self) -> None:
        """Wait until it responds to GET /health."""
        assert self.process is not None
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            while True:
                if self.process.poll() is not None:
                    raise AssertionError(self.log.read_text())
                with contextlib.suppress(httpx.HTTPError):
                    # A neuron wants its token for every answer but this one.
                    if (await client.get(f"{self.url}/health")).status_code in {200, 401}:
                        return
                await asyncio.sleep(0.05)  # there is no event to wait for while a process starts


@dataclass
class FleetRig:
    """A running fleet of one neuron and one or more gateways."""

    folder: Path
    neuron: Service
    gateways: list[Service] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base URL of the first gateway."""
        return self.gateways[0].url

    def operator(self, number: int = 0) -> OperatorClient:
        """Return an operator client of a gateway."""
        return OperatorClient(self.gateways[number].url, who="the gateway")

    def node(self) -> NeuronClient:
        """Return a client of the neuron."""
        return NeuronClient(self.neuron.url, who="the neuron", token=self.node_token)

    @property
    def node_token(self) -> str | None:
        """Token of the neuron; None until it has published one."""
        return read_neuron_token(self.neuron.url, os.environ)

    async def until(
        self, condition: Callable[[FleetSnapshot], bool], number: int = 0, seconds: float = 30.0
    ) -> FleetSnapshot:
        """Poll a gateway's snapshot until a condition holds; in-flight counts change without an event."""
        async with self.operator(number) as client, asyncio.timeout(seconds):
            while not condition(snapshot := await client.fleet()):
                await asyncio.sleep(0.02)
        return snapshot

    def engines(self) -> list[psutil.Process]:
        """Return the live engine processes of this fleet, even if they are orphans."""
        return list(_engines_below(self.folder))

    async def wait_engines_stopped(self, seconds: float = 15.0) -> None:
        """Wait until all of its engines have exited."""
        async with asyncio.timeout(seconds):
            while self.engines():
                await asyncio.sleep(0.05)


def _engines_below(folder: Path) -> Iterator[psutil.Process]:
    """Yield the engines with weights in a folder; each fleet has its own copies of the weights."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "neuron_server.embedded_engine" in line and str(folder) in line:
                yield process


def _write_files(folder: Path, gateways: int, memory_mb: int | None, gateway: str) -> FleetRig:
    for path in tiny_models().values():
        shutil.copy(path, folder)
    neuron_port = free_port()
    memory = "" if memory_mb is None else f"memory_mb = {memory_mb}\n"
    first = free_port()
    (folder / "neuron.toml").write_text(
        f'[neuron]\nlisten = "127.0.0.1:{neuron_port}"\nstate_dir = "{folder}/neuron"\n'
        f"[cpu]\noffer = true\n{memory}"
        f'[[harnesses]]\nname = "embedded"\nport_range = [{first}, {min(first + 300, 65535)}]\n'
    )
    (folder / "models.toml").write_text(
        "\n".join(
            f'[[models]]\nid = "{name}"\nharness = "embedded"\nvram_mb = {MODEL_MB}\n'
            f'source = "{folder}"\nfile = "{path.name}"\n'
            for name, path in tiny_models().items()
        )
    )
    rig = FleetRig(
        folder,
        Service(
            ["serve", "neuron", "--config", str(folder / "neuron.toml")],
            f"http://127.0.0.1:{neuron_port}",
            folder / "neuron.log",
        ),
    )
    for number in range(gateways):
        port = free_port()
        config = folder / f"cortex-{number}.toml"
        config.write_text(
            f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:{free_port()}"\n'
            f"{gateway}[eviction]\nmin_residency = 0\n"
            f'[[neurons]]\nname = "beast"\nendpoint = "{rig.neuron.url}"\n'
        )
        argv = ["serve", "gateway", "--config", str(config)]
        rig.gateways.append(
            Service(argv, f"http://127.0.0.1:{port}", folder / f"gateway-{number}.log")
        )
    return rig


@contextlib.asynccontextmanager
async def running_fleet(
    folder: Path, *, gateways: int = 1, memory_mb: int | None = None, gateway: str = ""
) -> AsyncIterator[FleetRig]:
    """Run a neuron and gateways, and wait until they are connected. Stops them and all engines afterwards.

    Args:
        folder: directory for their files.
        gateways: number of gateways, all with the same neuron.
        memory_mb: MiB of the cpu device; None for the host's.
        gateway: additional keys of [gateway].
    """
    rig = _write_files(folder, gateways, memory_mb, gateway)
    services = [rig.neuron, *rig.gateways]
    try:
        for service in services:
            service.start()
        for service in services:
            await service.wait_healthy()
        for number in range(gateways):
            await rig.until(lambda s: all(n.state == "up" for n in s.nodes), number)
        yield rig
    finally:
        await asyncio.to_thread(_stop, rig, services)


def _stop(rig: FleetRig, services: list[Service]) -> None:
    for service in reversed(services):
        if service.process is not None and service.process.poll() is None:
            service.process.terminate()
    for service in services:
        if service.process is not None:
            try:
                service.process.wait(20)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait()
    deadline = time.monotonic() + 5
    while rig.engines() and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = rig.engines()
    for process in orphans:
        process.kill()
    assert not orphans, f"orphans: {orphans}"
