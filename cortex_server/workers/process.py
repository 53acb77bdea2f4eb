"""One worker process: the data plane, with stand-ins for what the control process owns."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import MutableMapping
from typing import Any

import uvloop

from cortex_common.config.access import KeyTerms, LimitsSection
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.errors import CortexError
from cortex_common.net.tls import ServerTls, server_tls
from cortex_http.server import LAST_S, Server, joined, server, settle_memory
from cortex_http.server_protocol import protocol_for
from cortex_server.auth.keys import MadeKey
from cortex_server.dataplane.asgi import AsgiRoute, Receive, Send
from cortex_server.fleet.credentials import accesses
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.inflight import InflightRequests
from cortex_server.proxy.load_balancer import LoadBalancer
from cortex_server.proxy.routes import ROUTES
from cortex_server.proxy.tracing import Spans, spans
from cortex_server.workers.board import Board
from cortex_server.workers.limits import SharedDoors, SharedGate
from cortex_server.workers.loads import RemoteLoads
from cortex_server.workers.logged import set_up
from cortex_server.workers.relay import Relay
from cortex_server.workers.reports import Reporter
from cortex_server.workers.table import Table
from cortex_server.workers.wire import (
    Answer,
    Channel,
    Drain,
    Drained,
    Elsewhere,
    End,
    Failure,
    Granted,
    HowFar,
    KeySpec,
    Listening,
    Question,
    Seen,
    Settings,
    Start,
    State,
    ToWorker,
    YourTurn,
)

log = logging.getLogger("cortex.workers")


def work(channel: int, board: int, column: int) -> None:
    """Serve until the control process says that it is over, or is gone.

    Args:
        channel: descriptor of the socket to the control process.
        board: descriptor of the board.
        column: of the board, this worker's.
    """
    # A terminal and systemd send these to every process; the control process says what is to be done.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(socket.socket(fileno=channel), board, column))


async def _work(sock: socket.socket, board: int, column: int) -> None:
    worker = _Worker(board, column)
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.create_unix_connection(lambda: worker.channel, sock=sock)
    await worker.run()


class _Worker:
    """What is put together here as `gateway.Gateway` does it for one process."""

    def __init__(self, board: int, column: int) -> None:
        self.channel: Channel[ToWorker] = Channel(ToWorker, self._heard, self._lost)
        self._descriptor, self._column = board, column
        self._start: Start | None = None
        self._told: asyncio.Future[_Desk] = asyncio.get_running_loop().create_future()
        self._serving: Server | None = None
        self._key_service: _Desk | None = None

    async def run(self) -> None:
        """Serve until the end."""
        key_service = await self._told
        assert self._start is not None
        tls = server_tls(key_service.tls)
        self._serving = key_service.server(tls)
        sock = _listener(self._start)
        work = [
            asyncio.create_task(w)
            for w in (
                key_service.context.watch_silence(),
                key_service.context.watch_lag(),
                key_service.reporter.pulse(),
                *((tls.watch(),) if tls is not None else ()),
            )
        ]
        for task in work:
            task.add_done_callback(self._look_after)
        settle_memory()
        self.channel.send(Listening())
        await self._serving.serve(sockets=[sock])
        for task in work:
            task.cancel()
        key_service.close()
        self.channel.close()

    def _look_after(self, task: asyncio.Task[None]) -> None:
        """Without one of its parts a worker only looks alive: better that it ends, and is replaced."""
        if not task.cancelled():
            log.critical("task_died", exc_info=task.exception())
            os._exit(1)

    def _lost(self) -> None:
        """Without the control process there is nobody to work for."""
        if self._key_service is not None:
            self._key_service.context.cut_off()
        if self._serving is None:
            os._exit(1)
        self._serving.stop()

    def _heard(self, message: ToWorker) -> None:
        if isinstance(message, Start):
            self._start = message
            set_up(message.level, self.channel.send)
        elif isinstance(message, End):
            self._end()
        elif self._key_service is not None:
            self._key_service.heard(message)
        elif isinstance(message, State):
            self._begin(message)

    def _begin(self, state: State) -> None:
        """The first state: now there is something to work by."""
        assert self._start is not None
        assert state.settings is not None
        config = GatewayConfig.model_validate_json(state.settings.gateway)
        board = Board(self._descriptor, self._start.workers, self._column)
        self._key_service = _Desk(self.channel, board, self._start, config)
        self._key_service.use(state)
        self._told.set_result(self._key_service)

    def _end(self) -> None:
        if self._key_service is None or self._serving is None:
            os._exit(0)
        self._key_service.end()
        self._serving.stop()


class _Desk:
    """What the control process says, and whom it is for."""

    def __init__(
        self, channel: Channel[ToWorker], board: Board, start: Start, config: GatewayConfig
    ) -> None:
        self.tls = config.tls
        self._channel = channel
        self._workers = start.workers
        metrics = Metrics()
        self._table = Table(channel, metrics)
        self._loads = RemoteLoads(channel)
        self._access_control = SharedGate(board)
        self._limits = self._share(config.limits)
        self._doors = SharedDoors(board, channel, self._limits)
        self._spans: Spans | None = spans(os.environ)
        self.reporter = Reporter(channel, self._table, asyncio.get_running_loop())
        self.context = ProxyContext(
            self._table,
            self._loads,
            metrics,
            config.gateway,
            access_control=self._access_control,
            limits=self._limits,
            spans=self._spans,
            admission=self._doors,
            settled=self.reporter.settle,
        )
        self.context.chooser = LoadBalancer(self.reporter.homes)
        self.reporter.context = self.context
        self._here = InflightRequests(self.context)
        self._relay = Relay(
            start.backstage, lambda: self.context.max_body, config.gateway.connect_timeout_s
        )
        self._routes = {
            path.decode(): AsgiRoute(lambda: self.context, route) for path, route in ROUTES.items()
        }
        self._draining: asyncio.Task[None] | None = None

    def server(self, tls: ServerTls | None) -> Server:
        """Serves inference here, and relays the rest."""
        context = None if tls is None else tls.context
        return server(self._app, http=protocol_for(self.context), tls=context, last_s=LAST_S)

    async def _app(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        await (route or self._relay)(scope, receive, send)

    def _share(self, limits: LimitsSection) -> LimitsSection:
        """Connections are the kernel's to spread, so each worker takes its part of them."""
        share = -(-limits.max_connections // self._workers)
        return limits.model_copy(update={"max_connections": share})

    def heard(self, message: ToWorker) -> None:
        """Do what a message says."""
        match message:
            case State():
                self.use(message)
            case Elsewhere():
                self._table.use_busy(message.busy)
                self.reporter.homes.heard(message.homes)
            case Granted():
                self._loads.granted(message)
            case HowFar():
                self._loads.how_far(message)
            case YourTurn():
                self._doors.called(message.ask, go=message.go)
            case Question():
                self._channel.send(self._answer(message))
            case Drain():
                self._access_control.stopping = True
                self._draining = asyncio.create_task(self._drain())
            case _:
                raise AssertionError(message)

    def use(self, state: State) -> None:
        """Work by this state from now on, and say so."""
        if state.settings is not None:
            try:
                self._use_settings(state.settings)
            except CortexError as failed:
                # The control process could read what they name a moment ago.
                log.error("settings_refused", extra={"facts": {"reason": failed.message}})  # noqa: TRY400 - no defect
        if state.keys is not None:
            self._use_keys(state.keys)
        self._table.use(state.models)
        self._table.names.unheard = state.unheard
        self.reporter.send()
        self._channel.send(Seen(state.version))

    def _use_settings(self, settings: Settings) -> None:
        config = GatewayConfig.model_validate_json(settings.gateway)
        how = accesses(config.nodes, os.environ)
        self._limits = self._share(config.limits)
        self.context.use(config.gateway, self._limits)
        self.context.pool.use_nodes({e.endpoint: how[e.name] for e in config.nodes})
        self._access_control.insecure = config.gateway.insecure
        self._table.use_catalogue(Catalogue.model_validate_json(settings.catalogue))

    def _use_keys(self, keys: tuple[KeySpec, ...]) -> None:
        self._access_control.use_rows({key.name: key.row for key in keys})
        made = [
            MadeKey(key.name, key.hash, KeyTerms.model_validate_json(key.terms), 0.0)
            for key in keys
        ]
        self._access_control.keyring.use((), made, asyncio.get_running_loop().time())

    def _answer(self, question: Question) -> Answer:
        try:
            if question.cancel is None:
                found = self._here.now()
                return Answer(question.number, found.model_dump_json().encode())
            ended = self._here.cancelled(question.cancel)
            return Answer(question.number, ended.model_dump_json().encode())
        except CortexError as refused:
            return Answer(question.number, b"", Failure.of(refused))

    async def _drain(self) -> None:
        await self._here.over()
        self.reporter.send()
        self._channel.send(Drained())

    def end(self) -> None:
        """Cut off what is left."""
        self.context.cut_off()
        self.reporter.send()

    def close(self) -> None:
        """Let go of everything."""
        self.reporter.send()
        self.context.close()
        self._relay.close()
        if self._spans is not None:
            self._spans.close()


def _listener(start: Start) -> socket.socket:
    if start.listener is not None:
        return socket.socket(fileno=start.listener)
    return joined(start.host, start.port)
