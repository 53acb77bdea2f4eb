"""The gateway as a daemon: its signals, its socket, and what it says to systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable

import uvloop

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.net import systemd
from cortex_common.net.tls import server_tls
from cortex_common.schema.fleet import NodeState
from cortex_common.schema.keys import Scope
from cortex_http.server import Server, freeze_startup_objects, url_of
from cortex_http.sockets import enable_keepalive
from cortex_server.fleet.credentials import accesses
from cortex_server.fleet.state import Fleet
from cortex_server.gateway import Gateway, listening
from cortex_server.reload import Files, Reloader

__all__ = ["Gateway", "check", "serve"]

log = logging.getLogger("cortex.gateway")

_CLOSING_S = 15.0
"""Seconds that everything after the drain may take."""


def serve(
    config: LoadedConfig[GatewayConfig],
    catalogue: LoadedConfig[Catalogue],
    read: Callable[[], Files] | None = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Args:
        config: its settings.
        catalogue: the models that can be asked for.
        read: reads both again, for SIGHUP, a changed file and `cortex config reload`.

    Raises:
        ConfigError: an address can't be listened on, or a file that the settings name can't be read.
        CortexError: a part of it died.
    """
    _open_more_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve((config, catalogue), read))


def _open_more_files() -> None:
    """As many as the host allows: shells and units start with 1024, for the sake of programs that use select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check(config: GatewayConfig) -> None:
    """Read what the settings name, as `serve` would.

    Raises:
        ConfigError: a certificate or a secret can't be read.
    """
    server_tls(config.tls)
    accesses(config.nodes, os.environ)


async def _serve(files: Files, read: Callable[[], Files] | None) -> None:
    gateway = Gateway(files[0].value, files[1].value)
    inherited = systemd.inherited_socket(os.environ)
    settings = gateway.config.gateway
    if inherited is not None:
        enable_keepalive(inherited)
    with inherited or listening(settings.listen, "listen", reuse_port=settings.reuse_port) as sock:
        server = gateway.server()
        ending = _Ending(gateway, server)
        async with gateway.running(), asyncio.TaskGroup() as beside:
            work = [beside.create_task(systemd.run_watchdog(os.environ))]
            if read is not None:
                gateway.reloader = Reloader(files, read, gateway.use, SystemClock())
                work.append(beside.create_task(gateway.reloader.watch()))
                _on_hangup(gateway.reloader, beside)
            ending.follow_signals()
            gateway.on_broken = server.stop
            freeze_startup_objects()
            event(log, "gateway_listening", url=url_of(sock, tls=gateway.speaks_tls))
            _tell_who_may_ask(gateway)
            _keep_status_told(gateway.fleet)
            systemd.notify("READY=1", os.environ)
            await server.serve(sockets=[sock])
            for task in work:
                task.cancel()
    event(log, "gateway_stopped")
    if gateway.broken is not None:
        raise CortexError(f"the gateway's {gateway.broken} died; the log above says how")


def _tell_who_may_ask(gateway: Gateway) -> None:
    """What an operator who has just started it, and whose clients are refused, should know."""
    if gateway.access_control.insecure:
        event(log, "insecure", logging.WARNING, hint="whoever can connect may ask; make keys")
    elif Scope.INFER not in gateway.access_control.keyring.protected:
        event(log, "own_host_only", hint="`cortex keys create NAME` makes keys for other hosts")


def _keep_status_told(fleet: Fleet) -> None:
    """Have `systemctl status` show how many nodes answer."""
    told = ""

    def tell() -> None:
        nonlocal told
        states = [fleet.state(name) for name in fleet.entries]
        status = f"STATUS={states.count(NodeState.UP)} of {len(states)} nodes answer"
        if status != told:
            told = status
            systemd.notify(status, os.environ)

    fleet.on_change(tell)
    tell()


class _Ending:
    """The end of a gateway: the first signal drains it, the second hurries."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self._gateway = gateway
        self._server = server
        self._task: asyncio.Task[None] | None = None

    def follow_signals(self) -> None:
        """Begin the end on SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked)

    def _asked(self) -> None:
        if self._task is None:
            systemd.notify("STOPPING=1", os.environ)
            # However long a drain may take, the unit's TimeoutStopSec must not end it.
            allowed_s = self._gateway.config.gateway.drain_timeout_s + _CLOSING_S
            systemd.notify(f"EXTEND_TIMEOUT_USEC={allowed_s * 1e6:.0f}", os.environ)
            self._task = asyncio.create_task(self._gateway.drain(), name="drain")
            # Not in a `finally` of the task: of two signals at once the second cancels it before it has begun.
            self._task.add_done_callback(lambda _: self._server.stop())
        else:
            self._task.cancel()


def _on_hangup(reloader: Reloader, beside: asyncio.TaskGroup) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(
        signal.SIGHUP, lambda: beside.create_task(reloader.try_reload(), name="reload")
    )
