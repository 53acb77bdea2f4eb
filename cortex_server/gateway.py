"""The gateway: constructs its parts, connects them, and runs their background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter

from cortex_common.clock import SystemClock
from cortex_common.config.base import split_host_port
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig, GatewaySection
from cortex_common.errors import ConfigError
from cortex_common.log import event
from cortex_common.log_buffer import LogBuffer
from cortex_common.net.state_dir import lock_state_dir
from cortex_common.net.tls import report_expiring_certificates, server_tls
from cortex_common.net.trusted_hosts import TrustedHosts, trusted_hosts
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.fleet import SettingsView
from cortex_common.supervision import BackgroundTasks, Work
from cortex_http.routing import AsgiOnly
from cortex_http.server import Server, create_server, url_of
from cortex_http.server_protocol import protocol_for
from cortex_http.sockets import listen
from cortex_server.api.app import create_app
from cortex_server.api.config import config_router
from cortex_server.api.keys import keys_router
from cortex_server.api.logs import logs_router
from cortex_server.api.metrics import metrics_app
from cortex_server.api.operator import operator_router
from cortex_server.api.operator_socket import serving_operators
from cortex_server.api.requests import requests_router
from cortex_server.audit_log import AuditLog
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.key_service import KeyService
from cortex_server.auth.keys import Keyring
from cortex_server.auth.usage import UsageCounter
from cortex_server.fleet.credentials import load_credentials, node_certificates
from cortex_server.fleet.membership import Membership
from cortex_server.fleet.state import Fleet
from cortex_server.fleet.usage_reporter import UsageReporter
from cortex_server.lifecycle.controller import Controller
from cortex_server.lifecycle.engine_restarts import EngineRestarts
from cortex_server.lifecycle.gpu_return import GpuReturn
from cortex_server.lifecycle.operations import Operations
from cortex_server.lifecycle.rolling_update import RollingUpdate
from cortex_server.metrics.exposition import GatewayCollector
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.inflight import InflightRequests
from cortex_server.proxy.router import InferenceRouter
from cortex_server.proxy.timeouts import watch_timeouts
from cortex_server.proxy.tracing import create_exporter
from cortex_server.reload import Reloader
from cortex_server.storage.database import Database, database_path
from cortex_server.storage.history import HistoryStore
from cortex_server.storage.keys import KeyStore
from cortex_server.storage.placement import PlacementStore

log = logging.getLogger("cortex.gateway")

tls_log = logging.getLogger("cortex.tls")

_CLOSE_S = 2.0
"""Seconds that connections have to close once the drain is over."""


class Gateway:
    """One gateway.

    Args:
        config: the settings.
        catalogue: the model configs.

    Raises:
        ConfigError: a certificate, a secret or the state_dir in the settings cannot be used.
        Conflict: another gateway uses the same state_dir.

    Attributes:
        config: the settings in force.
        reloader: reloads the configuration; None if the gateway was not started from files.
        inflight: the requests in flight.
        tasks: the background tasks.
    """

    def __init__(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        clock = SystemClock()
        self.config = config
        self.reloader: Reloader | None = None
        self.audit_log = AuditLog(clock)
        # Without the access log, which would displace everything else; `cortex requests` shows it.
        self._log_buffer = LogBuffer(exclude=("cortex.requests",))
        self.tasks = BackgroundTasks(clock, self._on_task_failure)
        self._node_access = load_credentials(config.nodes, os.environ)
        self._node_certificates = node_certificates(config.nodes)
        self._tls = server_tls(config.tls)
        self.metrics = Metrics()
        self.fleet = Fleet(config.nodes, catalogue, clock, self.metrics)
        self.fleet.certificates = self._certificates
        self.fleet.settings = lambda: self.reloader.view if self.reloader else SettingsView()
        self.metrics.snapshot = lambda: self.fleet.snapshot
        self.fleet.warnings = lambda: (*self.tasks.warnings(), *self._database.warnings())
        self.metrics.write_failures = lambda: self._database.write_failures
        self.metrics.task_failures = lambda: self.tasks.failures
        self._membership = Membership(self.fleet, self.tasks)
        self._usage_reporter = UsageReporter(self._membership.clients, clock)
        self.fleet.on_use = self._usage_reporter.record
        self.fleet.report_use = self._usage_reporter.flush
        path = database_path(config.gateway.state_dir, os.environ)
        # Two gateways would overwrite each other's keys and usage.
        self._lock = None if path is None else lock_state_dir(path.parent, "gateway")
        self._database = Database(path)
        self._store = PlacementStore(self._database)
        self.controller = Controller(
            fleet=self.fleet,
            nodes=self._membership.clients,
            catalogue=catalogue,
            config=config,
            clock=clock,
            store=self._store,
        )
        self._rolling_update = RollingUpdate(self.fleet, self.controller, catalogue, clock)
        self._gpu_return = GpuReturn(self.fleet, self.controller, catalogue, clock)
        usage = UsageCounter()
        self.access_control = AccessControl(
            Keyring(),
            insecure=config.gateway.insecure,
            usage=usage,
            trusted=_trusted_hosts(config.gateway),
        )
        self.key_service = KeyService(
            self.access_control.keyring, usage, KeyStore(self._database), config.keys
        )
        self._spans = create_exporter(os.environ)
        self.context = ProxyContext(
            self.fleet,
            self.controller,
            self.metrics,
            config.gateway,
            access_control=self.access_control,
            limits=config.limits,
            spans=self._spans,
        )
        self.inflight = InflightRequests(self.context)
        self._router = InferenceRouter(self.context, self.inflight)
        self._history: HistoryStore | None = None
        if path is not None:
            self._history = HistoryStore(
                self._database,
                self.audit_log,
                self.context.access_log,
                self.controller.decision_log,
            )
        self._restarts = EngineRestarts(self.fleet, self.controller, clock)
        self._operations = Operations(self.fleet, self.controller, self._restarts, clock)
        self.app = create_app(self.fleet, lambda: self.context, routers=self._routers())

    def _routers(self) -> tuple[APIRouter, ...]:
        """Return the routers of the operator API. The log routes come first: see `logs_router`."""
        fleet, operations, nodes = self.fleet, self._operations, self._membership.clients
        return (
            logs_router(
                operations.snapshot,
                nodes,
                self._log_buffer,
                lambda: fleet.closed,
                fleet.model_not_found,
            ),
            operator_router(fleet, operations, self.audit_log),
            requests_router(self.inflight),
            keys_router(self.key_service),
            config_router(lambda: self.reloader),
        )

    @property
    def serves_tls(self) -> bool:
        """Whether the API is served over HTTPS."""
        return self._tls is not None

    def server(self) -> Server:
        """Create the server of the API."""
        tls = None if self._tls is None else self._tls.context
        return create_server(self.app, protocol_for(self._router), tls=tls, drain_s=_CLOSE_S)

    def serving_operators(self, port: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Serve the operator socket inside the block; `port` is that of the API."""
        return serving_operators(self.app, self._router, port, os.environ)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background tasks and the metrics listener; shut everything down at the end."""
        self._log_buffer.attach()
        if self._history is not None:
            self._history.restore()
        self.audit_log.attach()
        async with self._metrics_listener():
            await self._use_nodes(self.config)
            work = self._background_work()
            for name, task in work.items():
                self.tasks.start(name, task)
            try:
                yield
            finally:
                await asyncio.gather(*map(self.tasks.stop, work))
                await self._close()
                await self.tasks.close()

    def _background_work(self) -> dict[str, Work]:
        """Return what runs in the background, by name."""
        work: dict[str, Work] = {
            "controller": self.controller.run,
            "usage_reports": self._usage_reporter.run,
            "directives": self.controller.directives.run,
            "timeouts": partial(watch_timeouts, self.inflight.requests),
            "lag": self.context.measure_lag,
            "usage": self.key_service.run,
            "rolling_update": self._rolling_update.run,
            "gpu_return": self._gpu_return.run,
            "restarts": self._restarts.run,
            "certificate_expiry": partial(
                report_expiring_certificates,
                self._certificates,
                SystemClock(),
                partial(event, tls_log),
            ),
        }
        if self._history is not None:
            work["history"] = self._history.run
        if self._tls is not None:
            work["certificates"] = self._tls.watch
        return work

    async def _close(self) -> None:
        await self.controller.close()
        self.audit_log.detach()
        await self._operations.close()
        await self._membership.close()
        self.context.close()
        if self._history is not None:
            await self._history.close()
        await self.key_service.close()
        await asyncio.to_thread(self._database.close)
        if self._lock is not None:
            os.close(self._lock)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        self._log_buffer.detach()

    def _on_task_failure(self) -> None:
        self.fleet.notify()

    async def apply(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        """Apply new settings. Requests in flight continue with the old ones.

        Raises:
            ConfigError: a secret or a certificate cannot be read; nothing has changed.
        """
        self._node_access = load_credentials(config.nodes, os.environ)
        self._node_certificates = node_certificates(config.nodes)
        self.config = config
        stale = self._rolling_update.use_catalogue(catalogue)
        self._gpu_return.use_catalogue(catalogue)
        if stale:
            event(log, "stale_instances_found", count=stale)
        self.fleet.use_catalogue(catalogue)
        self.controller.use_catalogue(catalogue)
        self.controller.use_config(config)
        self.key_service.configure(config.keys)
        self.access_control.insecure = config.gateway.insecure
        self.access_control.trusted = _trusted_hosts(config.gateway)
        self.context.use(config.gateway, config.limits)
        await self._use_nodes(config)

    async def drain(self) -> None:
        """Reject new requests and wait for those in flight, at most for `drain_timeout_s`.

        New requests get 503 with Retry-After, so that a load balancer can send them to another gateway.
        """
        self.access_control.stopping = True
        event(log, "gateway_draining", requests=self.inflight.count)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.gateway.drain_timeout_s):
                await self.inflight.wait_idle()
        self.inflight.cut_off()
        self.fleet.close()

    def _certificates(self) -> tuple[Certificate, ...]:
        """Return the certificates in use, each file once: nodes can share a certificate authority."""
        own = () if self._tls is None else self._tls.certificates
        return tuple(dict.fromkeys((*own, *self._node_certificates)))

    async def _use_nodes(self, config: GatewayConfig) -> None:
        access = self._node_access
        self.context.addresses.use_nodes({e.endpoint: access[e.name] for e in config.nodes})
        await self._membership.use_nodes(config.nodes, access)

    @contextlib.asynccontextmanager
    async def _metrics_listener(self) -> AsyncIterator[None]:
        address = self.config.gateway.metrics_listen
        if address is None:
            yield
            return
        app = metrics_app(GatewayCollector(self.metrics), lambda: self.access_control)
        tls = None if self._tls is None else self._tls.context
        protocol = protocol_for(AsgiOnly(self.config.limits))
        server = create_server(app, protocol, tls=tls, drain_s=1.0)
        with listening(address, "metrics_listen") as sock:
            event(log, "metrics_listening", url=f"{url_of(sock, tls=tls is not None)}/metrics")
            task = asyncio.create_task(server.serve(sockets=[sock]), name="metrics")
            try:
                yield
            finally:
                server.stop()
                await task


def _trusted_hosts(section: GatewaySection) -> TrustedHosts:
    return trusted_hosts(
        "gateway",
        listen=split_host_port(section.listen)[0],
        allowed_hosts=section.allowed_hosts,
        allowed_origins=section.allowed_origins,
    )


def listening(address: str, setting: str, *, reuse_port: bool = False) -> socket.socket:
    """Open a listening socket.

    Args:
        address: host:port; port 0 selects a free port.
        setting: key of [gateway] that contains the address, for the error.
        reuse_port: whether other gateways can listen on the same address.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    host, port = split_host_port(address)
    try:
        return listen(host, port, reuse_port=reuse_port)
    except OSError as error:
        variable = f"CORTEX_GATEWAY__{setting.upper()}"
        raise ConfigError(
            f"can't listen on {host}:{port}: {error.strerror or error}",
            hints=(
                f"set {setting} in [gateway] of cortex.toml, or {variable}, to another address",
            ),
        ) from error
