"""The neuron as a daemon: its server, its signals and its sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import signal
import socket
import ssl
from functools import partial

import uvloop

from cortex_common.clock import SystemClock
from cortex_common.config.access import LimitsSection
from cortex_common.config.base import split_host_port
from cortex_common.config.loader import LoadedConfig
from cortex_common.config.neuron import NeuronConfig
from cortex_common.config.secrets import read_secret
from cortex_common.errors import ConfigError
from cortex_common.log import event as log_event
from cortex_common.net import systemd
from cortex_common.net.tls import report_expiring_certificates, server_tls
from cortex_common.net.trusted_hosts import trusted_hosts
from cortex_http.routing import AsgiOnly
from cortex_http.server import Server, freeze_startup_objects
from cortex_http.server import create_server as create_http_server
from cortex_http.server_protocol import protocol_for
from cortex_http.sockets import listen
from neuron_server.api import create_app
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource, load_library
from neuron_server.hardware.sample import DeviceSource
from neuron_server.harness.keys import EngineAuth, EngineKeys
from neuron_server.harness.probe import engine_client
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.process.cgroups import find_cgroups
from neuron_server.relay import Relay
from neuron_server.runtime import Runtime
from neuron_server.state_store import StateDir
from neuron_server.token_auth import load_token, publish_token

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


_LIMITS = LimitsSection()
"""Limits of connections: those of a gateway by default."""


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this host only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(config: LoadedConfig[NeuronConfig]) -> None:
    """Serve a neuron until SIGTERM or SIGINT; port 0 selects a free port.

    Raises:
        ConfigError: the address can't be listened on, or the kind of a harness is unknown.
        Conflict: another neuron uses the state directory.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config.value))


def check(config: NeuronConfig) -> None:
    """Check the files that the settings refer to, as `serve` does.

    Raises:
        ConfigError: a certificate or the token can't be read.
    """
    server_tls(config.tls)
    read_secret(config.neuron.token, config.neuron.token_file, os.environ)


async def _serve(config: NeuronConfig) -> None:
    tls = server_tls(config.tls)
    host, port = split_host_port(config.neuron.listen)
    with listening(host, port) as listener:
        url_host = f"[{host}]" if ":" in host else host
        port = listener.getsockname()[1]
        url = f"{'https' if tls else 'http'}://{url_host}:{port}"
        runtime = create_runtime(config)
        published = publish_token(port, runtime.token, os.environ)
        runtime.tasks.start("watchdog", partial(systemd.run_watchdog, os.environ))
        if tls is not None:
            runtime.certificates = lambda: tls.certificates
            runtime.tasks.start("certificates", tls.watch)
            runtime.tasks.start(
                "certificate expiry",
                partial(
                    report_expiring_certificates,
                    runtime.certificates,
                    SystemClock(),
                    runtime.events.record,
                ),
            )
        server = create_server(config, runtime, url=url, tls=tls.context if tls else None)
        freeze_startup_objects()
        _Shutdown(server, runtime).handle_signals()
        await server.serve(sockets=[listener])
        await runtime.tasks.close()
        if published is not None:
            published.unlink(missing_ok=True)
        log_event(log, "neuron_stopped")


def create_runtime(
    config: NeuronConfig, sources: tuple[DeviceSource, ...] | None = None
) -> Runtime:
    """Create the runtime of a neuron; `sources` replaces the host's own devices.

    Raises:
        ConfigError: the state directory or the token can't be used.
        Conflict: another neuron uses the state directory.
    """
    clock = SystemClock()
    if sources is None:
        sources = (NvmlSource(load_library()),)
        if config.cpu.offer:
            sources = (*sources, CpuSource(config.cpu.memory_mb))
    engine_host = _LOOPBACK
    if config.neuron.engine_access == "direct":
        engine_host = config.neuron.engine_host or _LOOPBACK
    state = StateDir(config.neuron.state_dir)
    keys = EngineKeys(state.path / "keys")
    http = engine_client(config.harnesses, EngineAuth(keys, engine_host))
    registry = HarnessRegistry(config.harnesses, http)
    token = load_token(config.neuron, os.environ)
    cgroups = find_cgroups(config.neuron.cgroup)
    return Runtime(
        config,
        Host(sources, clock),
        registry,
        state,
        clock,
        engine_host,
        cgroups,
        token=token,
        keys=keys,
    )


def create_server(
    config: NeuronConfig, runtime: Runtime, *, url: str = "", tls: ssl.SSLContext | None = None
) -> Server:
    """Return the server of a neuron; it opens and closes the runtime.

    Args:
        config: Configuration of the neuron.
        runtime: Runtime of the neuron.
        url: Base URL that it listens on, for the log.
        tls: TLS settings; None for plain HTTP.
    """
    host, _ = split_host_port(config.neuron.listen)
    relayed = config.neuron.engine_access == "auto" and not is_loopback(host)
    trusted = trusted_hosts("neuron", listen=host, allowed_hosts=config.neuron.allowed_hosts)
    relay = Relay(runtime, _LIMITS, trusted) if relayed else None

    def on_open() -> None:
        log_event(log, "neuron_listening", url=url, devices=len(runtime.host.devices))
        systemd.notify("READY=1", os.environ)

    return create_http_server(
        create_app(runtime, relay=relay, trusted=trusted, on_open=on_open),
        protocol_for(AsgiOnly(_LIMITS) if relay is None else relay),
        tls=tls,
        drain_s=math.ceil(config.neuron.relay_drain_s),
        lifespan="on",
    )


def listening(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free one.

    Raises:
        ConfigError: The address can't be listened on.
    """
    try:
        return listen(host, port)
    except OSError as failed:
        raise ConfigError(
            f"can't listen on {host}:{port}: {failed.strerror or failed}",
            hints=(
                "set another address: [neuron] listen in neuron.toml, or CORTEX_NEURON__LISTEN",
            ),
        ) from failed


class _Shutdown:
    """Ends the neuron on a signal, with exit status 0; a second signal skips the drain."""

    def __init__(self, server: Server, runtime: Runtime) -> None:
        self._server = server
        self._runtime = runtime

    def handle_signals(self) -> None:
        """Install handlers for SIGTERM, SIGINT and SIGHUP, the signal of a closed terminal, until the process exits."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)

    def _stop(self) -> None:
        hurry = self._server.should_exit
        systemd.notify("STOPPING=1", os.environ)
        self._runtime.stopping_s = 0.0
        if relayed := sum(self._runtime.inflight.relayed.values()):
            timeout_s = 0.0 if hurry else self._runtime.config.neuron.relay_drain_s
            log_event(log, "neuron_draining", relayed=relayed, timeout_s=timeout_s)
            self._runtime.stopping_s = timeout_s
        self._server.stop()
        if hurry:
            self._server.cut()
        self._runtime.changes.close()
