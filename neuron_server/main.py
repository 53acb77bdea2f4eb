"""Creates a neuron from its configuration and serves it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator, Mapping

import uvicorn
from fastapi import FastAPI

from cortex_common.clock import SystemClock
from cortex_common.config.base import split_host_port
from cortex_common.config.loader import LoadedConfig
from cortex_common.config.neuron import NeuronConfig
from cortex_common.config.secrets import read_secret
from cortex_common.errors import ConfigError
from cortex_common.log import event as log_event
from cortex_common.net import systemd
from cortex_common.net.tls import report_expiring_certificates, server_tls
from cortex_http.sockets import listen
from neuron_server.api import create_app as _create_api
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource, load_library
from neuron_server.hardware.sample import DeviceSource
from neuron_server.harness.probe import engine_client
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.process.cgroups import find_cgroups
from neuron_server.relay import Relay
from neuron_server.runtime import Runtime
from neuron_server.state_store import StateDir

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable only from this host."""
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
    asyncio.run(_serve(config.value))


def check(config: NeuronConfig) -> None:
    """Check the files that the settings refer to, as `serve` does.

    Raises:
        ConfigError: a certificate or the token can't be read.
    """
    server_tls(config.tls)
    with_secrets(config, os.environ)


async def _serve(config: NeuronConfig) -> None:
    config = with_secrets(config, os.environ)
    tls = server_tls(config.tls)
    host, port = split_host_port(config.neuron.listen)
    if not is_loopback(host) and config.neuron.token is None and config.tls.client_ca is None:
        log_event(
            log,
            "authentication_disabled",
            logging.WARNING,
            listen=config.neuron.listen,
            hint="anyone who can reach this address can start programs on this host; set token_file in [neuron]",
        )
    with listening(host, port) as listener:
        url_host = f"[{host}]" if ":" in host else host
        url = f"{'https' if tls else 'http'}://{url_host}:{listener.getsockname()[1]}"
        runtime = create_runtime(config)
        app = create_app(config, runtime, url=url)
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=math.ceil(config.neuron.relay_drain_s),
        )
        background = [systemd.run_watchdog(os.environ)]
        if tls is not None:
            settings.load()
            settings.ssl = tls.context
            runtime.certificates = lambda: tls.certificates
            expiry = report_expiring_certificates(
                runtime.certificates, SystemClock(), runtime.events.record
            )
            background += [tls.watch(), expiry]
        tasks = [asyncio.create_task(work) for work in background]
        try:
            await _Server(settings, runtime).serve(sockets=[listener])
        finally:
            for task in tasks:
                task.cancel()


def with_secrets(config: NeuronConfig, environ: Mapping[str, str]) -> NeuronConfig:
    """Return the settings with the token from its file.

    Raises:
        ConfigError: the file can't be read.
    """
    section = config.neuron
    token = read_secret(section.token, section.token_file, environ)
    return config.model_copy(update={"neuron": section.model_copy(update={"token": token})})


def create_runtime(
    config: NeuronConfig, sources: tuple[DeviceSource, ...] | None = None
) -> Runtime:
    """Create the runtime of a neuron; `sources` replace the host's devices."""
    clock = SystemClock()
    if sources is None:
        sources = (NvmlSource(load_library()),)
        if config.cpu.offer:
            sources = (*sources, CpuSource(config.cpu.memory_mb))
    engine_host = _LOOPBACK
    if config.neuron.engine_access == "direct":
        engine_host = config.neuron.engine_host or _LOOPBACK
    registry = HarnessRegistry(config.harnesses, engine_client(config.harnesses))
    state = StateDir(config.neuron.state_dir)
    cgroups = find_cgroups(config.neuron.cgroup)
    return Runtime(config, Host(sources, clock), registry, state, clock, engine_host, cgroups)


def create_app(config: NeuronConfig, runtime: Runtime, *, url: str = "") -> FastAPI:
    """Create the application of a neuron."""
    host, _ = split_host_port(config.neuron.listen)
    relayed = config.neuron.engine_access == "auto" and not is_loopback(host)

    def on_open() -> None:
        log_event(log, "neuron_listening", url=url, devices=len(runtime.host.devices))
        systemd.notify("READY=1", os.environ)

    return _create_api(runtime, relay=Relay(runtime) if relayed else None, on_open=on_open)


def listening(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 selects a free port.

    Raises:
        ConfigError: the address can't be listened on.
    """
    try:
        return listen(host, port)
    except OSError as failed:
        raise ConfigError(
            f"can't listen on {host}:{port}: {failed.strerror or failed}",
            hints=("[neuron] listen in neuron.toml, or CORTEX_NEURON__LISTEN, chooses another",),
        ) from failed


class _Server(uvicorn.Server):
    """Exits with status 0 on a signal, instead of raising the signal again."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT; a second signal skips draining."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        systemd.notify("STOPPING=1", os.environ)
        self._runtime.stopping_s = 0.0
        if relayed := sum(self._runtime.inflight.relayed.values()):
            timeout_s = 0.0 if self.should_exit else self._runtime.config.neuron.relay_drain_s
            log_event(log, "neuron_draining", relayed=relayed, timeout_s=timeout_s)
            self._runtime.stopping_s = timeout_s
        self.force_exit = self.should_exit
        self.should_exit = True
        self._runtime.changes.close()
