"""The control process's side of all workers: what they work by, what they do, and their requests as one list."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from cortex_common.config.access import KeyTerms
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.errors import CortexError
from cortex_common.schema.requests import RequestList, RequestView
from cortex_server.auth.access_control import AccessControl
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.access_log import AccessLog
from cortex_server.proxy.inflight import ended, named
from cortex_server.workers.board import INSIDE, Board
from cortex_server.workers.books import Books
from cortex_server.workers.link import House, Link, Whole
from cortex_server.workers.lives import Lives
from cortex_server.workers.queue import SharedQueue
from cortex_server.workers.rows import Rows
from cortex_server.workers.wire import Drain, End, KeySpec, Settings, Start

log = logging.getLogger("cortex.workers")

SOON_S = 0.01
"""Changes within it are told as one."""

_BACKLOG = 1024


class Crew:
    """See the module; the `Register` of all workers' requests.

    Args:
        fleet: whose routing table workers go by.
        conductor: who is asked for models that are not ready.
        metrics: where requests are counted.
        gate: whose keys workers check.
        journal: where requests leave their lines.
        config: the settings.
        catalogue: the profiles.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        controller: Controller,
        metrics: Metrics,
        access_control: AccessControl,
        access_log: AccessLog,
        config: GatewayConfig,
        catalogue: Catalogue,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._count = config.gateway.workers
        self._access_control = access_control
        self._access_log = access_log
        self._board = Board.make(self._count)
        self._rows = Rows(self._board)
        self._queue = SharedQueue(loop, config.limits, self._board)
        metrics.queue = lambda: (self._board.sum(INSIDE), self._queue.waiting)
        self._books = Books(fleet, metrics, access_control.usage, access_log)
        self._house = House(
            fleet=fleet,
            controller=controller,
            keyring=access_control.keyring,
            books=self._books,
            queue=self._queue,
            touched=self._touched,
            unsettled=self.publish,
        )
        self._lives: Lives | None = None
        self._links: dict[int, Link] = {}
        self._settings = _settings(config, catalogue)
        self._fleet = fleet
        self._whole = self._now(1)
        self._numbers: set[int] = set()
        self._homes: dict[int, str] = {}
        self._tell_soon = _Soon(loop, self._tell_elsewhere)
        fleet.on_change(_Soon(loop, self.publish))
        fleet.routed_by(self.agreed)

    # -- what workers work by ------------------------------------------------------------------

    async def use(self, config: GatewayConfig, catalogue: Catalogue) -> None:
        """Work by other settings; return once all workers do."""
        self._settings = _settings(config, catalogue)
        self._queue.limits = config.limits
        await self.agreed()

    async def agreed(self) -> None:
        """Return once all workers work by everything that has changed so far."""
        self.publish()
        version = self._whole.version
        await asyncio.gather(*(link.seen(version) for link in tuple(self._links.values())))

    def publish(self) -> None:
        """Tell the workers what has changed, if anything has."""
        before = self._whole
        now = self._now(before.version)
        if now == before:
            return
        self._whole = replace(now, version=before.version + 1)
        for link in self._links.values():
            link.tell(self._whole)

    def _now(self, version: int) -> Whole:
        unheard = self._fleet.names.unheard
        return Whole(version, self._books.table(), unheard, self._keys(), self._settings)

    def _keys(self) -> tuple[KeySpec, ...]:
        keys = self._access_control.keyring.keys
        rows = self._rows.of(key.name for key in keys)
        return tuple(KeySpec(k.name, k.hash, _terms(k.terms), rows[k.name]) for k in keys)

    # -- what they do --------------------------------------------------------------------------

    def in_flight(self, key: str) -> int:
        """Requests of a key that are under way."""
        return self._rows.in_flight(key)

    def _touched(self, numbers: set[int], homes: dict[int, str]) -> None:
        # How busy the only instance of a model is changes no choice.
        self._numbers |= self._books.with_others(numbers)
        self._homes |= homes
        if self._numbers or self._homes:
            self._tell_soon()

    def _tell_elsewhere(self) -> None:
        numbers, self._numbers = self._numbers, set()
        homes, self._homes = self._homes, {}
        for link in self._links.values():
            link.tell_elsewhere(numbers, homes)

    # -- `Register` ----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """See `Register`; as the workers last said."""
        return sum(link.active for link in self._links.values())

    async def listed(self, last: int) -> RequestList:
        """See `Register`."""
        active = [view for _, view in await self._active()]
        return RequestList(
            at=time.time(),
            active=tuple(sorted(active, key=lambda r: r.started)),
            recent=tuple(map(ended, self._access_log.last(last))),
        )

    async def cancel(self, ident: str) -> RequestView:
        """See `Register`."""
        active = await self._active()
        found = named((view for _, view in active), ident)
        link = next(link for link, view in active if view is found)
        return RequestView.model_validate_json(await link.ask(found.id))

    async def over(self) -> None:
        """See `Register`."""
        if self._lives is not None:
            self._lives.no_more()
        for link in self._links.values():
            link.channel.send(Drain())
        await asyncio.gather(*(link.drained.wait() for link in tuple(self._links.values())))

    def cut_off(self) -> None:
        """See `Register`; this ends the workers too."""
        if self._lives is not None:
            self._lives.no_more()
        for link in self._links.values():
            link.channel.send(End())

    async def _active(self) -> list[tuple[Link, RequestView]]:
        links = tuple(self._links.values())
        told = await asyncio.gather(*(link.ask() for link in links), return_exceptions=True)
        found: list[tuple[Link, RequestView]] = []
        for link, body in zip(links, told, strict=True):
            if isinstance(body, CortexError):  # it died meanwhile, and its requests with it
                continue
            if isinstance(body, BaseException):
                raise body
            found += ((link, r) for r in RequestList.model_validate_json(body).active)
        return found

    # -- from their start to their end ---------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(
        self, sock: socket.socket, *, inherited: bool
    ) -> AsyncIterator[socket.socket]:
        """All workers, from when they listen to their end; gives the socket on which they ask for the rest.

        Args:
            sock: holds the address that they listen on; where it was inherited, they listen on itself.
            inherited: it was, and listens already.

        Raises:
            CortexError: one of them ended before it listened.
        """
        with _backstage() as (backstage, reached):
            start = self._start(sock, f"/proc/self/fd/{reached}", inherited=inherited)
            listener = (sock.fileno(),) if inherited else ()
            lives = self._lives = Lives(
                self._count,
                (self._board.descriptor, reached, *listener),
                hire=self._hire,
                hired=lambda link: self._hired(link, start),
                died=self._died,
            )
            try:
                await lives.begin()
                yield backstage
            finally:
                self.cut_off()
                await lives.end()
                self._board.close()

    def _start(self, sock: socket.socket, path: str, *, inherited: bool) -> Start:
        host, port = sock.getsockname()[:2]
        return Start(
            host=host,
            port=port,
            listener=sock.fileno() if inherited else None,
            backstage=path,
            workers=self._count,
            level=logging.getLogger().level,
        )

    def _hire(self, column: int) -> Link:
        return Link(column, self._house)

    def _hired(self, link: Link, start: Start) -> None:
        self._links[link.column] = link
        link.channel.send(start)
        link.tell(self._whole)
        link.tell_elsewhere(self._books.with_others(), {})

    def _died(self, link: Link) -> None:
        if self._links.get(link.column) is link:
            del self._links[link.column]
        self._board.wipe(link.column)
        self._queue.look()


@contextlib.contextmanager
def _backstage() -> Iterator[tuple[socket.socket, int]]:
    """A listening Unix socket, and a descriptor by which processes that inherit it reach it under /proc/self/fd.

    It has no name, so that nothing is left behind even where the gateway is killed.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        with tempfile.TemporaryDirectory(prefix="cortex-") as folder:
            sock.bind(f"{folder}/control.sock")
            reached = os.open(f"{folder}/control.sock", os.O_PATH)
        sock.listen(_BACKLOG)
        try:
            yield sock, reached
        finally:
            os.close(reached)


class _Soon:
    """Calls something a moment later, once for all who want it meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SOON_S, self._run)

    def _run(self) -> None:
        self._timer = None
        self._call()


def _terms(terms: KeyTerms) -> bytes:
    """Without what an entry of cortex.toml has beside its terms."""
    return terms.model_dump_json(include=set(KeyTerms.model_fields)).encode()


def _settings(config: GatewayConfig, catalogue: Catalogue) -> Settings:
    return Settings(
        config.model_dump_json().encode(), catalogue.model_dump_json(exclude_defaults=True).encode()
    )
