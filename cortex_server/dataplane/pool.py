"""Connections to engines that are kept for the next request, by the address of the engine."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from cortex_common.config.loader import FileStamp
from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_common.net.sockets import enable_keepalive
from cortex_http.client import Connection
from cortex_server.proxy.stream_fast_path import SizeLines

_API_PATH = b"/v1"


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """Where an engine listens. Two of the same words are not the same: a pool makes one for each engine.

    Attributes:
        prefix: path before /v1, without a slash at its end.
        authority: for the Host header.
        tls: how to speak TLS there; None for plain HTTP.
        uds: path of a Unix socket, instead of host and port.
        authorization: value of that header, where the node asks for a token.
        api_path: what stands there in the place of /v1.
        size_lines: what the engine wrote before its chunks.
        paths: those of routes that were asked for so far, as `path` finds them.
    """

    host: str
    port: int
    prefix: bytes
    authority: bytes
    tls: ssl.SSLContext | None = None
    uds: str | None = None
    authorization: bytes | None = None
    api_path: bytes = _API_PATH
    size_lines: SizeLines = field(default_factory=dict, repr=False)
    paths: dict[str, bytes] = field(default_factory=dict, repr=False)

    def path(self, route: str) -> bytes:
        """Where a route of ours is there."""
        there = route.encode()
        if there.startswith(_API_PATH):
            there = self.api_path + there.removeprefix(_API_PATH)
        found = self.paths[route] = self.prefix + there
        return found

    @classmethod
    def parse(cls, url: str) -> Address:
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
        api_path: see `UpstreamEntry.api_path`.
        certificates: of the files that `tls` was made from, to know it from one made after they were replaced.
    """

    tls: ssl.SSLContext | None = None
    token: str | None = None
    api_path: str = _API_PATH.decode()
    certificates: tuple[FileStamp, ...] = ()

    @property
    def authorization(self) -> bytes | None:
        """The value of that header."""
        return None if self.token is None else f"Bearer {self.token}".encode()


class ConnectionPool:
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
        self._endpoints: dict[str, Address] = {}
        self._nodes: dict[str, NodeAccess] = {}
        self._resting: dict[Address, list[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.live = 0

    def endpoint(self, url: str) -> Address:
        """The parsed form of an engine's URL."""
        found = self._endpoints.get(url)
        if found is None:
            found = self._endpoints[url] = self._parsed(url)
        return found

    def use_nodes(self, nodes: Mapping[str, NodeAccess]) -> None:
        """Tell how nodes want to be asked, by the base URL below which their engines are."""
        # The longest first: one may stand below another on the same host, with another key.
        self._nodes = {base: nodes[base] for base in sorted(nodes, key=len, reverse=True)}
        self._endpoints.clear()

    def _parsed(self, url: str) -> Address:
        plain = Address.parse(url)
        for base, access in self._nodes.items():
            if url == base or url.startswith(f"{base}/"):
                return replace(
                    plain,
                    tls=(access.tls or plain.tls) if plain.tls else None,
                    authorization=access.authorization,
                    api_path=access.api_path.encode(),
                )
        return plain

    def resting(self, endpoint: Address) -> Connection | None:
        """An open, unused connection; the one used last, since it is the least likely to be closed."""
        waiting = self._resting.get(endpoint)
        return waiting.pop() if waiting else None

    async def connect(self, endpoint: Address) -> Connection:
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
                        lambda: Connection(self, endpoint), endpoint.uds
                    )
                else:
                    transport, connection = await loop.create_connection(
                        lambda: Connection(self, endpoint),
                        endpoint.host,
                        endpoint.port,
                        ssl=endpoint.tls,
                    )
                    enable_keepalive(transport.get_extra_info("socket"))
        except TimeoutError as failed:
            raise UpstreamTimeout(
                f"the engine at {where} did not accept a connection in {self._connect_timeout_s:g} s"
            ) from failed
        except OSError as failed:
            raise UpstreamFailed(f"the engine at {where} can't be reached: {failed}") from failed
        return connection

    def rest(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.rested_at = time.monotonic()
        self._resting.setdefault(connection.endpoint, []).append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        waiting = self._resting.get(connection.endpoint)
        if waiting is not None and connection in waiting:
            waiting.remove(connection)
        if not waiting:
            self._resting.pop(connection.endpoint, None)

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
        self._sweeper = None
        oldest = time.monotonic() - self._idle_s
        for waiting in list(self._resting.values()):
            for connection in list(waiting):
                if connection.rested_at <= oldest:
                    waiting.remove(connection)
                    connection.close()
        if any(self._resting.values()):
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)
