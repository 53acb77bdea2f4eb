"""Connections from the gateway to engines: one asyncio.Protocol, kept alive in a pool per engine.

Nothing here awaits anything but a connect. An answer comes to its `Receiver` as plain calls; what one read of the
socket brought is handed on as one piece.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from cortex_common.errors import UpstreamFailed, UpstreamTimeout

Headers = list[tuple[bytes, bytes]]

_JOIN_BELOW = 64 * 1024
"""Up to this size head and body go out as one piece: copying them costs less than a second system call."""


class Receiver(Protocol):
    """Whoever asked. Calls come in this order: head, data any number of times, then end or lost.

    `upstream_read` follows when all that one read of the socket brought has been told, so that it can be passed on with
    one write.
    """

    def upstream_head(self, status: int, headers: Headers) -> None:
        """Status and headers have come; header names are in lower case."""

    def upstream_data(self, data: bytes) -> None:
        """A piece of the body, decoded from its framing."""

    def upstream_read(self) -> None:
        """Nothing more has come for now."""

    def upstream_end(self) -> None:
        """The answer is whole, and the connection already back in its pool."""

    def upstream_lost(self, reason: str, *, answered: bool) -> None:
        """The connection broke; `answered` when at least one byte of the answer had come."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens.

    Attributes:
        prefix: path before /v1, without a slash at its end.
        authority: for the Host header.
        tls: how to speak TLS there; None for plain HTTP.
        uds: path of a Unix socket, instead of host and port.
        authorization: value of that header, where the node asks for a token.
    """

    host: str
    port: int
    prefix: bytes
    authority: bytes
    tls: ssl.SSLContext | None = None
    uds: str | None = None
    authorization: bytes | None = None

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """From http://host:port/prefix, https://..., or http+unix://%2Frun%2Fengine.sock/prefix.

        Raises:
            ValueError: anything else.
        """
        parts = urlsplit(url)
        prefix = parts.path.rstrip("/").encode()
        if parts.scheme == "http+unix" and parts.netloc:
            path = parts.netloc.replace("%2F", "/").replace("%2f", "/")
            return cls("", 0, prefix, b"localhost", uds=path)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL that requests can be sent to")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, prefix, parts.netloc.encode(), tls)


@dataclass(frozen=True, slots=True)
class NodeAccess:
    """How one node wants to be asked.

    Attributes:
        tls: with which authorities and certificate; None for the system's.
        token: that it asks for.
    """

    tls: ssl.SSLContext | None = None
    token: str | None = None

    @property
    def authorization(self) -> bytes | None:
        """The value of that header."""
        return None if self.token is None else f"Bearer {self.token}".encode()


class Connection(asyncio.Protocol):
    """One connection; serves one request at a time, then rests in its pool."""

    __slots__ = (
        "_complete",
        "_excess",
        "_framed",
        "_head",
        "_headers",
        "_lasting",
        "_parser",
        "_pieces",
        "_pool",
        "_receiver",
        "_seen",
        "_status",
        "_told",
        "_transport",
        "rested_at",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._pieces: list[bytes] = []
        self.rested_at = 0.0
        self._reset()
        self._parser = httptools.HttpResponseParser(self)

    def _reset(self) -> None:
        self._headers: Headers = []
        self._head = False
        self._lasting = False
        self._framed = False
        self._complete = False
        self._excess = False
        self._seen = False
        self._status = 0
        self._told = False

    # -- the asking side ---------------------------------------------------------------------

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Send a request whose answer goes to `receiver`."""
        assert self._transport is not None
        self._receiver = receiver
        self._reset()
        if len(body) < _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more. This is how an engine learns to stop."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close a resting connection."""
        if self._transport is not None:
            self._transport.close()

    def pause(self) -> None:
        """Read no more for now: the client does not keep up."""
        if self._transport is not None and self._receiver is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._pool.live += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._transport = None
        self._pool.live -= 1
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._head and not self._framed and exc is None:
            # Neither a length nor chunks were announced: the end of the connection is the end of the body.
            receiver.upstream_end()
        else:
            reason = "it closed the connection" if exc is None else str(exc)
            receiver.upstream_lost(reason, answered=self._seen)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        if self._receiver is None:  # nobody asked: whatever this is, it must not become an answer
            self.abort()
            return
        self._seen = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as failed:
            self._garbage(f"the engine's answer is not HTTP: {failed}")
            return
        self._hand_on()

    def _hand_on(self) -> None:
        """Tell the receiver what one read brought; it may abort this connection at any of the calls."""
        if self._head and not self._told and self._receiver is not None:
            self._told = True
            self._receiver.upstream_head(self._status, self._headers)
        if self._pieces and self._receiver is not None:
            pieces = self._pieces
            self._pieces = []
            self._receiver.upstream_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._finish()
        elif self._receiver is not None:
            self._receiver.upstream_read()

    # -- httptools ---------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._excess = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._excess:
            return
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:  # an interim answer: the real one follows
            self._headers, self._framed = [], False
            return
        self._head = True
        if self._status in (204, 304):
            self._framed = True

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self._excess:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._head and not self._complete:
            self._complete = True
            self._lasting = (
                self._parser.should_keep_alive()
            )  # the parser forgets it after this call

    def _finish(self) -> None:
        receiver, self._receiver = self._receiver, None
        if self._transport is None:
            return
        if self._excess or not self._lasting:
            self.close()
        else:
            self._reset()
            self._pool.rest(self)
        if receiver is not None:
            receiver.upstream_end()

    def _garbage(self, reason: str) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.upstream_lost(reason, answered=True)


class Pool:
    """Connections to engines by URL.

    Args:
        connect_timeout_s: seconds to wait for a connection.
        idle_s: seconds that an unused connection is kept.

    Attributes:
        live: open connections, in use or resting.
    """

    def __init__(self, *, connect_timeout_s: float, idle_s: float = 30.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._endpoints: dict[str, Endpoint] = {}
        self._nodes: dict[str, NodeAccess] = {}
        self._resting: dict[Endpoint, list[Connection]] = {}
        self._home: dict[Connection, Endpoint] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.live = 0

    def endpoint(self, url: str) -> Endpoint:
        """The parsed form of an engine's URL."""
        found = self._endpoints.get(url)
        if found is None:
            found = self._endpoints[url] = self._parsed(url)
        return found

    def use_nodes(self, nodes: Mapping[str, NodeAccess]) -> None:
        """Tell how nodes want to be asked, by the base URL below which their engines are."""
        self._nodes = dict(nodes)
        self._endpoints.clear()

    def _parsed(self, url: str) -> Endpoint:
        plain = Endpoint.parse(url)
        for base, access in self._nodes.items():
            if url == base or url.startswith(f"{base}/"):
                return replace(
                    plain,
                    tls=(access.tls or plain.tls) if plain.tls else None,
                    authorization=access.authorization,
                )
        return plain

    def resting(self, endpoint: Endpoint) -> Connection | None:
        """An open, unused connection; the one used last, since it is the least likely to be closed."""
        waiting = self._resting.get(endpoint)
        return waiting.pop() if waiting else None

    async def connect(self, endpoint: Endpoint) -> Connection:
        """Open a connection.

        Raises:
            UpstreamFailed: refused, or no such host.
            UpstreamTimeout: no answer in time.
        """
        loop = asyncio.get_running_loop()
        where = endpoint.uds or f"{endpoint.host}:{endpoint.port}"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if endpoint.uds is not None:
                    _, connection = await loop.create_unix_connection(
                        lambda: Connection(self), endpoint.uds
                    )
                else:
                    _, connection = await loop.create_connection(
                        lambda: Connection(self), endpoint.host, endpoint.port, ssl=endpoint.tls
                    )
        except TimeoutError as failed:
            raise UpstreamTimeout(
                f"the engine at {where} did not accept a connection in {self._connect_timeout_s:g} s"
            ) from failed
        except OSError as failed:
            raise UpstreamFailed(f"the engine at {where} can't be reached: {failed}") from failed
        self._home[connection] = endpoint
        return connection

    def rest(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        loop = asyncio.get_running_loop()
        connection.rested_at = loop.time()
        self._resting.setdefault(self._home[connection], []).append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        endpoint = self._home.pop(connection, None)
        if endpoint is not None:
            waiting = self._resting.get(endpoint)
            if waiting is not None and connection in waiting:
                waiting.remove(connection)
            if not waiting:
                self._resting.pop(endpoint, None)

    def close(self) -> None:
        """Close all resting connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for waiting in list(self._resting.values()):
            for connection in list(waiting):
                connection.close()

    def _sweep(self) -> None:
        """Close what nobody used for a while."""
        loop = asyncio.get_running_loop()
        self._sweeper = None
        oldest = loop.time() - self._idle_s
        for waiting in list(self._resting.values()):
            for connection in list(waiting):
                if connection.rested_at <= oldest:
                    waiting.remove(connection)
                    connection.close()
        if any(self._resting.values()):
            self._sweeper = loop.call_later(self._idle_s, self._sweep)
