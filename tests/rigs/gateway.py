"""A `cortex serve gateway` process with configuration files that tests write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cortex_common.client.gateway import OperatorClient
from cortex_common.schema.fleet import FleetSnapshot
from rigs.fleet import free_port
from rigs.forkserver import CortexProcess, environment


@dataclass
class GatewayProcess:
    """A gateway process.

    Attributes:
        folder: directory of its files.
        port: port of the API.
        metrics_port: port of the metrics.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: CortexProcess | None = None

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Its log so far."""
        return (self.folder / "gateway.log").read_text()

    def write(self, *tables: str, gateway: str = "", models: str = "") -> None:
        """Write cortex.toml with tables and additional keys of [gateway], and models.toml."""
        listen = (
            f'listen = "127.0.0.1:{self.port}"\nmetrics_listen = "127.0.0.1:{self.metrics_port}"\n'
        )
        config = "\n".join([f"[gateway]\n{listen}{gateway}", *tables])
        for name, text in (("models.toml", models), ("cortex.toml", config)):
            new = self.folder / f"{name}.new"
            new.write_text(text)
            new.replace(self.folder / name)

    def start(self, *arguments: str, **environ: str) -> None:
        """Start the process."""
        config = str(self.folder / "cortex.toml")
        self.process = CortexProcess(
            ["serve", "gateway", "-c", config, "--log-format", "json", *arguments],
            self.folder / "gateway.log",
            environ=environment(**environ),
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def wait_exit(self, seconds: float = 30.0) -> int:
        """Wait until it exits, and return the exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, seconds)

    async def wait_for_event(
        self, event: str, times: int = 1, seconds: float = 20.0
    ) -> dict[str, Any]:
        """Wait until an event has been logged a number of times, and return the latest line."""
        assert self.process is not None
        async with asyncio.timeout(seconds):
            while True:
                lines = [line for line in self.log.splitlines() if f'"{event}"' in line]
                if len(lines) >= times:
                    found: dict[str, Any] = json.loads(lines[-1])
                    return found
                assert self.process.poll() is None, self.log
                await asyncio.sleep(0.02)

    def operator(self, token: str | None = None) -> OperatorClient:
        """Return an operator client."""
        return OperatorClient(self.url, who="the gateway", token=token)

    async def until(
        self, condition: Callable[[FleetSnapshot], bool], seconds: float = 20.0
    ) -> None:
        """Poll the fleet until a condition holds."""
        async with self.operator() as client, asyncio.timeout(seconds):
            while not condition(await client.fleet()):
                await asyncio.sleep(0.02)


def neuron_table(name: str, url: str, **more: str) -> str:
    """Return a [[neurons]] entry."""
    keys = {"name": name, "endpoint": url} | more
    return "[[neurons]]\n" + "".join(f'{k} = "{v}"\n' for k, v in keys.items())


@contextlib.asynccontextmanager
async def gateway_process(
    folder: Path,
    *tables: str,
    arguments: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    gateway: str = "",
    models: str = "",
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway; yields it once it listens, and kills it afterwards if it still runs."""
    process = GatewayProcess(folder)
    process.write(*tables, gateway=gateway, models=models)
    process.start(*arguments, **(environ or {}))
    try:
        await process.wait_for_event("gateway_listening", seconds=60)
        yield process
    finally:
        assert process.process is not None
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()
