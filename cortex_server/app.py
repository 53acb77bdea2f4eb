"""The gateway put together, and run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
import uvloop

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.load import Loaded
from cortex_common.config.section import split_host_port
from cortex_common.errors import ConfigError
from cortex_common.logs import event
from cortex_common.neuron_client import NeuronClient
from cortex_server.api.app import create_app
from cortex_server.api.keys import keys_router
from cortex_server.api.metrics import metrics_app
from cortex_server.api.operator import operator_router
from cortex_server.auth.desk import Desk
from cortex_server.auth.gate import Gate
from cortex_server.auth.keys import Keyring
from cortex_server.auth.records import Records
from cortex_server.auth.usage import Usage
from cortex_server.dataplane.diverted import DivertingProtocol, compatible
from cortex_server.dataplane.plane import DataPlane
from cortex_server.fleet.state import Fleet
from cortex_server.fleet.watcher import Watcher
from cortex_server.lifecycle.conductor import Conductor
from cortex_server.lifecycle.verbs import Verbs
from cortex_server.metrics import Metrics
from cortex_server.store import Store, store_path

log = logging.getLogger("cortex.gateway")

_KEEP_ALIVE_S = 75
"""Seconds that an idle client connection is kept; above the 60 s of common load balancers, so that they close first."""


def serve(config: Loaded[GatewayConfig], catalogue: Loaded[Catalogue]) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Raises:
        ConfigError: an address can't be listened on.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config.value, catalogue.value))


async def _serve(config: GatewayConfig, catalogue: Catalogue) -> None:
    gateway = Gateway(config, catalogue)
    with _listening(config.gateway.listen, "listen") as sock:
        server = gateway.server()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        async with gateway.running():
            _settle_memory()
            event(log, "gateway_listening", url=_url(sock))
            await server.serve(sockets=[sock])
    event(log, "gateway_stopped")


def _settle_memory() -> None:
    """What is there at start stays: the collector need not look at it again, nor run every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _listening(address: str, setting: str) -> socket.socket:
    host, port = split_host_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except OSError as failed:
        raise ConfigError(
            f"can't listen on {address}: {failed.strerror}",
            hints=[
                f"[gateway] {setting} in cortex.toml, or CORTEX_GATEWAY__{setting.upper()}, chooses another"
            ],
        ) from failed


class Server(uvicorn.Server):
    """uvicorn, stopped by us: its own signal handling would end the process before we have tidied up."""

    def stop(self) -> None:
        """Take no new connections, let requests under way end, then return from `serve`."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Gateway:
    """All parts of one gateway.

    Args:
        config: its settings.
        catalogue: the models that can be asked for.
    """

    def __init__(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        clock = SystemClock()
        self._config = config
        self.metrics = Metrics()
        self.fleet = Fleet(config.neurons, catalogue, clock, self.metrics)
        self.metrics.snapshot = lambda: self.fleet.snapshot
        self._nodes = {
            entry.name: NeuronClient(entry.endpoint, who=f"node {entry.name}")
            for entry in config.neurons
        }
        self._store = Store(store_path(config.gateway.state_dir, os.environ))
        self.conductor = Conductor(
            fleet=self.fleet,
            nodes=self._nodes,
            catalogue=catalogue,
            config=config,
            clock=clock,
            store=self._store,
        )
        usage = Usage()
        self.gate = Gate(Keyring(), insecure=config.gateway.insecure, usage=usage)
        records = Records(store_path(config.gateway.state_dir, os.environ, "access.sqlite"))
        self.desk = Desk(self.gate.keyring, usage, records, config.keys)
        self.plane = DataPlane(
            self.fleet,
            self.conductor,
            self.metrics,
            config.gateway,
            gate=self.gate,
            limits=config.limits,
        )
        self._verbs = Verbs(self.fleet, self.conductor, clock)
        self.app = create_app(
            self.fleet,
            lambda: self.plane,
            routers=[operator_router(self.fleet, self._verbs), keys_router(self.desk)],
        )

    def server(self) -> Server:
        """A server for the API, with the inference routes diverted where uvicorn allows it."""
        reason = compatible()
        if reason is not None:
            event(log, "diversion_off", logging.WARNING, reason=reason)
        bound = type("GatewayProtocol", (DivertingProtocol,), {"plane": self.plane})
        return Server(
            uvicorn.Config(
                self.app,
                http="httptools" if reason is not None else bound,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(self._config.gateway.drain_timeout_s),
            )
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything that works in the background: watchers, conductor, metrics."""
        async with self._metrics_listener():
            tasks = [
                asyncio.create_task(self.conductor.run(), name="conductor"),
                asyncio.create_task(self.plane.watch_silence(), name="silence"),
                asyncio.create_task(self.desk.run(), name="usage"),
                *(
                    asyncio.create_task(
                        Watcher(name, client, self.fleet).run(), name=f"watch-{name}"
                    )
                    for name, client in self._nodes.items()
                ),
            ]
            for task in tasks:
                task.add_done_callback(_report)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._verbs.close()
                self.plane.close()
                self._store.close()
                self.desk.close()
                for client in self._nodes.values():
                    await client.close()

    @contextlib.asynccontextmanager
    async def _metrics_listener(self) -> AsyncIterator[None]:
        address = self._config.gateway.metrics_listen
        if address is None:
            yield
            return
        app = metrics_app(self.metrics, lambda: self.gate)
        server = Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        with _listening(address, "metrics_listen") as sock:
            event(log, "metrics_listening", url=f"{_url(sock)}/metrics")
            task = asyncio.create_task(server.serve(sockets=[sock]), name="metrics")
            try:
                yield
            finally:
                server.stop()
                await task


def _report(task: asyncio.Task[None]) -> None:
    """A background task that ends by itself is a bug that must not stay silent."""
    if not task.cancelled() and (failed := task.exception()) is not None:
        log.error("task_died", exc_info=failed, extra={"facts": {"task": task.get_name()}})
