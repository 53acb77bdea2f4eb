"""Requests forwarded to a server on a real socket."""

from __future__ import annotations

import asyncio

import pytest
from rigs.server import serving

from cortex_http.address import Address, parse_url
from cortex_http.forward import Forward, request_head
from cortex_http.pool import ConnectError, ConnectionPool


class Client:
    """A client's side that collects the response.

    Attributes:
        ended: the response is complete, or broke off.
    """

    length = 2

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.aborted = False
        self.ended = asyncio.Event()

    def respond(self, status: int, lines: bytes, length: int | None) -> None:
        self.status = status

    def write(self, data: bytes) -> None:
        self.body += data

    def flush(self) -> None:
        pass

    def chunked_transport(self) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def end(self) -> None:
        self.ended.set()

    def abort(self) -> None:
        self.aborted = True
        self.ended.set()


def forward(pool: ConnectionPool[Address], address: Address) -> tuple[Client, Forward[Address]]:
    """Forward a request with the body {}."""
    client = Client()
    request = Forward(
        client,  # type: ignore[arg-type]  # what it uses of one
        pool,
        address,
        request_head(b"POST", b"/", address.authority, b"", 2),
        on_error=lambda forward, reason: forward.refuse(502, b"", reason.encode()),
        on_end=lambda _: None,
    )
    request.receive_all(b"{}")
    return client, request


def address_of(url: str) -> Address:
    """Return the address of a URL."""
    parsed = parse_url(url)
    return Address(parsed.host, parsed.port, parsed.prefix, parsed.authority)


async def test_a_kept_connection_serves_the_next_request():
    """A server that keeps its connections is not connected to again for each request."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"{}"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving(serve) as url:
        pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=5)
        address = address_of(url)
        for _ in range(5):
            client, _ = forward(pool, address)
            await asyncio.wait_for(client.ended.wait(), 10)
            assert (client.status, client.body) == (200, b"ok")
        assert (connections, pool.live) == (1, 1)
        pool.close()


async def test_a_closed_pool_keeps_no_connection():
    """Closing a pool ends the request in flight, and a connection that opens afterwards is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        while await reader.read(64):
            pass

    async with serving(serve) as url:
        pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=5)
        client, _ = forward(pool, address_of(url))
        async with asyncio.timeout(10):
            while not client.body:
                await asyncio.sleep(0)
            pool.close()
            await client.ended.wait()
            with pytest.raises(ConnectError, match="stopping"):
                await pool.connect(address_of(url))
            while pool.live:
                await asyncio.sleep(0)
    assert client.aborted
    assert pool.take_idle(address_of(url)) is None
