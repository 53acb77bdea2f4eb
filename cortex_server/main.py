"""The gateway daemon: its socket, its signals, and its notifications to systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from collections.abc import Callable
from functools import partial

import uvloop

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig
from cortex_common.log import event
from cortex_common.net import systemd
from cortex_common.net.tls import server_tls
from cortex_common.schema.fleet import NodeState
from cortex_common.schema.keys import Scope
from cortex_http.server import Server, freeze_startup_objects, url_of
from cortex_http.sockets import enable_keepalive
from cortex_server.fleet.credentials import load_credentials
from cortex_server.fleet.state import Fleet
from cortex_server.gateway import Gateway, listening
from cortex_server.reload import Files, Reloader, file_stamps

__all__ = ["Gateway", "check", "serve"]

log = logging.getLogger("cortex.gateway")

_SHUTDOWN_S = 15.0
"""Upper bound of the seconds that the shutdown takes after the drain."""


def serve(
    config: LoadedConfig[GatewayConfig],
    catalogue: LoadedConfig[Catalogue],
    read: Callable[[], Files] | None = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT.

    Args:
        config: the settings.
        catalogue: the model configs.
        read: reads both again, on SIGHUP, after a file has changed and for `cortex config reload`.

    Raises:
        ConfigError: an address cannot be listened on, or a file in the settings cannot be read.
        CortexError: a background task has failed.
    """
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve((config, catalogue), read))


def _raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard limit; the default of 1024 exists for select(2) only."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def check(config: GatewayConfig) -> None:
    """Read the certificates and secrets in the settings, as `serve` does.

    Raises:
        ConfigError: a certificate or a secret cannot be read.
    """
    server_tls(config.tls)
    load_credentials(config.nodes, os.environ)


async def _serve(files: Files, read: Callable[[], Files] | None) -> None:
    stamps = file_stamps(files)
    gateway = Gateway(files[0].value, files[1].value)
    inherited = systemd.inherited_socket(os.environ)
    settings = gateway.config.gateway
    if inherited is not None:
        enable_keepalive(inherited)
    with inherited or listening(settings.listen, "listen", reuse_port=settings.reuse_port) as sock:
        server = gateway.server()
        shutdown = _Shutdown(gateway, server)
        port = sock.getsockname()[1]
        async with (
            gateway.running(),
            gateway.serving_operators(port),
            asyncio.TaskGroup() as group,
        ):
            gateway.tasks.start("watchdog", partial(systemd.run_watchdog, os.environ))
            if read is not None:
                gateway.reloader = Reloader(files, read, gateway.apply, SystemClock(), stamps)
                gateway.tasks.start("reload", gateway.reloader.watch)
                _handle_hangup(gateway.reloader, group, shutdown)
            shutdown.handle_signals()
            freeze_startup_objects()
            event(log, "gateway_listening", url=url_of(sock, tls=gateway.serves_tls))
            _log_access_mode(gateway)
            _notify_status(gateway.fleet)
            systemd.notify("READY=1", os.environ)
            await server.serve(sockets=[sock])
    event(log, "gateway_stopped")


def _log_access_mode(gateway: Gateway) -> None:
    """Log who can use the API, which explains rejected requests after a first start."""
    if gateway.access_control.insecure:
        hint = "requests without a key are accepted from every host; create keys"
        event(log, "authentication_disabled", logging.WARNING, hint=hint)
    elif Scope.INFER not in gateway.access_control.keyring.protected:
        hint = (
            "programs on this host need no key; `cortex keys create NAME` creates keys for others"
        )
        event(log, "loopback_only", hint=hint)


def _notify_status(fleet: Fleet) -> None:
    """Keep the number of reachable nodes in `systemctl status` up to date."""
    last = ""

    def notify() -> None:
        nonlocal last
        states = [fleet.state(name) for name in fleet.entries]
        status = f"STATUS={states.count(NodeState.UP)} of {len(states)} nodes reachable"
        if status != last:
            last = status
            systemd.notify(status, os.environ)

    fleet.on_change(notify)
    notify()


class _Shutdown:
    """Stops the gateway on signals: the first one drains it, the second one cuts the drain short."""

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self._gateway = gateway
        self._server = server
        self._drain_task: asyncio.Task[None] | None = None

    def handle_signals(self) -> None:
        """Install handlers for SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.begin)

    def begin(self) -> None:
        """Drain the gateway, or cut the drain short if it has started."""
        if self._drain_task is None:
            systemd.notify("STOPPING=1", os.environ)
            # The unit's TimeoutStopSec must not interrupt a long drain.
            timeout_s = self._gateway.config.gateway.drain_timeout_s + _SHUTDOWN_S
            systemd.notify(f"EXTEND_TIMEOUT_USEC={timeout_s * 1e6:.0f}", os.environ)
            self._drain_task = asyncio.create_task(self._gateway.drain(), name="drain")
            # Not in a `finally` of the task: the second of two simultaneous signals cancels it before it starts.
            self._drain_task.add_done_callback(lambda _: self._server.stop())
        else:
            self._drain_task.cancel()


def _handle_hangup(reloader: Reloader, group: asyncio.TaskGroup, shutdown: _Shutdown) -> None:
    """On SIGHUP, reload the settings, or stop if the signal means that the terminal was closed."""
    started_on_terminal = _has_terminal()

    def on_hangup() -> None:
        if started_on_terminal and not _has_terminal():
            shutdown.begin()
        else:
            group.create_task(reloader.try_reload(), name="reload")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal; opening a closed one fails with ENXIO (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
