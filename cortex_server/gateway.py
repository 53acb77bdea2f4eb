"""All parts of one gateway, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial

from fastapi import APIRouter

from cortex_common.clock import SystemClock
from cortex_common.config.base import split_host_port
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.errors import ConfigError
from cortex_common.log import event
from cortex_common.log_buffer import LogBuffer
from cortex_common.net.state_dir import lock_state_dir
from cortex_common.net.tls import report_expiring_certificates, server_tls
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.fleet import SettingsView
from cortex_http.server import Server, create_server, url_of
from cortex_http.server_protocol import AsgiOnly, protocol_for
from cortex_http.sockets import listen
from cortex_server.api.app import create_app
from cortex_server.api.config import config_router
from cortex_server.api.keys import keys_router
from cortex_server.api.logs import logs_router
from cortex_server.api.metrics import metrics_app
from cortex_server.api.operator import operator_router
from cortex_server.api.requests import requests_router
from cortex_server.audit_log import AuditLog
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.key_service import KeyService
from cortex_server.auth.keys import Keyring
from cortex_server.auth.usage import UsageCounter
from cortex_server.fleet.credentials import accesses, certificates_of
from cortex_server.fleet.membership import Membership
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.lifecycle.engine_restarts import EngineRestarts
from cortex_server.lifecycle.operations import Operations
from cortex_server.lifecycle.rolling_update import RollingUpdate
from cortex_server.metrics.exposition import GatewayCollector
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.inflight import InflightRequests
from cortex_server.proxy.router import InferenceRouter
from cortex_server.proxy.tracing import create_exporter
from cortex_server.reload import Reloader
from cortex_server.storage.database import Database, database_path
from cortex_server.storage.history import HistoryStore
from cortex_server.storage.keys import KeyStore
from cortex_server.storage.placement import PlacementStore

log = logging.getLogger("cortex.gateway")

_CLOSE_S = 2.0
"""Seconds that connections have to close once the drain is over."""
tls_log = logging.getLogger("cortex.tls")


class Gateway:
    """See the module.

    Args:
        config: its settings.
        catalogue: the models that can be asked for.

    Raises:
        ConfigError: a certificate or a secret that the settings name can't be read, or state_dir not be used.
        Conflict: another gateway uses its state_dir.

    Attributes:
        reloader: reads the settings again; set by whoever knows their files.
        inflight: The requests in flight.
        broken: which of its parts died, if any.
        on_broken: called when one does.
    """

    def __init__(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        clock = SystemClock()
        self.config = config
        self.reloader: Reloader | None = None
        self.audit_log = AuditLog(clock)
        # Lines of requests would push everything else out, and `cortex requests` shows them.
        self._log_buffer = LogBuffer(exclude=("cortex.requests",))
        self.broken: str | None = None
        self.on_broken: Callable[[], None] = lambda: None
        self._accesses = accesses(config.nodes, os.environ)
        self._of_nodes = certificates_of(config.nodes)
        self._tls = server_tls(config.tls)
        self.metrics = Metrics()
        self.fleet = Fleet(config.nodes, catalogue, clock, self.metrics)
        self.fleet.certificates = self._certificates
        self.fleet.settings = lambda: self.reloader.view if self.reloader else SettingsView()
        self.metrics.snapshot = lambda: self.fleet.snapshot
        self._membership = Membership(self.fleet)
        path = database_path(config.gateway.state_dir, os.environ)
        # Two gateways would overwrite each other's pins and cordons.
        self._lock = None if path is None else lock_state_dir(path.parent, "gateway")
        self._database = Database(path)
        self._store = PlacementStore(self._database)
        for node in self._store.cordons().intersection(self.fleet.entries):
            self.fleet.set_cordoned(node, True)
        self.controller = Controller(
            fleet=self.fleet,
            nodes=self._membership.clients,
            catalogue=catalogue,
            config=config,
            clock=clock,
            store=self._store,
        )
        self._rolling_update = RollingUpdate(self.fleet, self.controller, catalogue)
        usage = UsageCounter()
        self.access_control = AccessControl(
            Keyring(), insecure=config.gateway.insecure, usage=usage
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
        self._history: HistoryStore | None = None
        if path is not None:
            self._history = HistoryStore(
                self._database, self.audit_log, self.context.access_log, self.controller.decisions
            )
        self._restarts = EngineRestarts(self.fleet, self.controller, clock)
        self._verbs = Operations(self.fleet, self.controller, self._restarts, self._store, clock)
        self.app = create_app(self.fleet, lambda: self.context, routers=self._routers())

    def _routers(self) -> tuple[APIRouter, ...]:
        """The operator API."""
        fleet, verbs, nodes = self.fleet, self._verbs, self._membership.clients
        return (
            logs_router(verbs.shown, nodes, self._log_buffer, lambda: fleet.closed, fleet.unknown),
            operator_router(fleet, verbs, self.audit_log),
            requests_router(self.inflight),
            keys_router(self.key_service),
            config_router(lambda: self.reloader),
        )

    @property
    def speaks_tls(self) -> bool:
        """Whether it serves HTTPS."""
        return self._tls is not None

    def server(self) -> Server:
        """Create the server of the API."""
        tls = None if self._tls is None else self._tls.context
        router = InferenceRouter(self.context)
        return create_server(self.app, protocol_for(router), tls=tls, drain_s=_CLOSE_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything that works in the background: watchers, conductor, metrics."""
        self._log_buffer.attach()
        if self._history is not None:
            self._history.restore()
        self.audit_log.attach()
        async with self._metrics_listener():
            await self._use_nodes(self.config)
            tasks = [asyncio.create_task(w, name=name) for name, w in self._work().items()]
            for task in tasks:
                task.add_done_callback(self._look_after)
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._close()

    def _work(self) -> dict[str, Coroutine[None, None, None]]:
        """What runs beside the requests, by name."""
        work = {
            "controller": self.controller.run(),
            "timeouts": self.context.watch_timeouts(),
            "lag": self.context.measure_lag(),
            "usage": self.key_service.run(),
            "rolling_update": self._rolling_update.run(),
            "restarts": self._restarts.run(),
            "ends": report_expiring_certificates(
                self._certificates, SystemClock(), partial(event, tls_log)
            ),
        }
        if self._history is not None:
            work["history"] = self._history.run()
        if self._tls is not None:
            work["certificates"] = self._tls.watch()
        return work

    async def _close(self) -> None:
        self.audit_log.detach()
        await self._verbs.close()
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

    def _look_after(self, task: asyncio.Task[None]) -> None:
        """Without one of its parts a gateway only looks alive: better that it ends, and is started anew."""
        if not task.cancelled():
            facts = {"task": task.get_name()}
            log.critical("task_died", exc_info=task.exception(), extra={"facts": facts})
            self.broken = task.get_name()
            self.on_broken()

    async def use(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        """Run by other settings from now on; requests under way go on as they began.

        Raises:
            ConfigError: a secret or a certificate can't be read; nothing has changed.
        """
        self._accesses = accesses(config.nodes, os.environ)
        self._of_nodes = certificates_of(config.nodes)
        self.config = config
        stale = self._rolling_update.use(catalogue)
        if stale:
            event(log, "instances_stale", count=stale)
        self.fleet.use_catalogue(catalogue)
        self.controller.use_catalogue(catalogue)
        self.controller.use_config(config)
        self.key_service.configure(config.keys)
        self.access_control.insecure = config.gateway.insecure
        self.context.use(config.gateway, config.limits)
        await self._use_nodes(config)

    async def drain(self) -> None:
        """Take no new requests and wait for those under way, for as long as the settings allow.

        New ones are answered with 503 and Retry-After meanwhile, so that a load balancer can send them elsewhere.
        """
        self.access_control.stopping = True
        event(log, "gateway_draining", requests=self.inflight.count)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.gateway.drain_timeout_s):
                await self.inflight.wait_idle()
        self.inflight.cut_off()
        self.fleet.close()

    def _certificates(self) -> tuple[Certificate, ...]:
        """All in use, each file once: nodes may share an authority."""
        mine = () if self._tls is None else self._tls.certificates
        return tuple(dict.fromkeys((*mine, *self._of_nodes)))

    async def _use_nodes(self, config: GatewayConfig) -> None:
        how = self._accesses
        self.context.addresses.use_nodes({e.endpoint: how[e.name] for e in config.nodes})
        await self._membership.use(config.nodes, how)

    @contextlib.asynccontextmanager
    async def _metrics_listener(self) -> AsyncIterator[None]:
        address = self.config.gateway.metrics_listen
        if address is None:
            yield
            return
        app = metrics_app(GatewayCollector(self.metrics), lambda: self.access_control)
        tls = None if self._tls is None else self._tls.context
        protocol = protocol_for(AsgiOnly(self.config.limits))
        serving = create_server(app, protocol, tls=tls, drain_s=1.0)
        with listening(address, "metrics_listen") as sock:
            event(log, "metrics_listening", url=f"{url_of(sock, tls=tls is not None)}/metrics")
            task = asyncio.create_task(serving.serve(sockets=[sock]), name="metrics")
            try:
                yield
            finally:
                serving.stop()
                await task


def listening(address: str, setting: str, *, reuse_port: bool = False) -> socket.socket:
    """Open a listening socket.

    Args:
        address: host:port; port 0 takes a free one.
        setting: Key of [gateway] that holds the address, for the error.
        reuse_port: Share the address with other gateways that set this too.

    Raises:
        ConfigError: The address can't be listened on.
    """
    host, port = split_host_port(address)
    try:
        return listen(host, port, reuse_port=reuse_port)
    except OSError as failed:
        chosen_by = f"[gateway] {setting} in cortex.toml, or CORTEX_GATEWAY__{setting.upper()},"
        raise ConfigError(
            f"can't listen on {host}:{port}: {failed.strerror or failed}",
            hints=(f"{chosen_by} chooses another",),
        ) from failed
