"""The server's limits on time and size, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from cortex_http.request_times import RequestTimes
from cortex_http.routing import AsgiOnly
from cortex_http.server import create_server
from cortex_http.server_protocol import protocol_for
from cortex_http.sockets import listen


@dataclass
class Limits:
    """Limits of connections."""

    max_connections: int = 100
    max_header_kb: int = 64
    header_timeout_s: float = 60.0
    body_timeout_s: float = 60.0
    min_body_rate_kb: int = 0


async def app(_scope, receive, send) -> None:
    """Read the body, then answer with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def served(limits: Limits) -> AsyncIterator[int]:
    """Serve the application; yields the port."""
    server = create_server(app, protocol_for(AsgiOnly(limits)), tls=None, drain_s=1)
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.stop()
            server.cut()
            await serving


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes and return everything that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def test_heads_and_bodies_that_do_not_come_are_answered_with_408():
    """A connection without a head is just closed."""
    async with served(Limits(header_timeout_s=0.1, body_timeout_s=0.1)) as port:
        assert await exchange(port, b"") == b""
        for beginning in (HEAD, HEAD + b"content-length: 9\r\n\r\n{"):
            assert (await exchange(port, beginning)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("size", "status"), [(1 << 20, b"200"), ((1 << 20) + 1, b"413"), (20 << 20, b"413")]
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_the_application_gets_small_bodies_only(size: int, status: bytes, chunked: bool):
    """1 MiB is enough for a control route; the client sees the answer although it is still sending."""
    body = b"x" * size
    head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size
    if chunked:
        head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % size
        body += b"\r\n0\r\n\r\n"
    async with served(Limits()) as port:
        assert (await exchange(port, head + body)).startswith(b"HTTP/1.1 " + status)


def test_a_body_has_to_arrive_at_a_minimum_rate():
    """A byte now and then does not keep a request open; a slow but steady client has the time that it needs."""
    limits = Limits(body_timeout_s=10, min_body_rate_kb=16)
    times = RequestTimes(0.0)
    times.begin_body(0.0)
    for second in range(1, 100):
        times.receive_body(1, float(second))
        if times.is_late(second + 0.5, limits, in_head=False):
            break
    assert second == 10
    times.begin_body(0.0)
    for second in range(1, 1000):
        times.receive_body(17 * 1024, float(second))
        assert not times.is_late(second + 0.5, limits, in_head=False)


def test_a_pause_of_the_process_is_no_silence_of_the_client():
    """After 1,000 seconds in which the process stood still, as much is left of each timeout as before."""
    limits = Limits(header_timeout_s=10, body_timeout_s=10)
    times = RequestTimes(0.0)
    times.discount(1000.0)
    assert not times.is_late(1009.0, limits, in_head=True)
    assert times.is_late(1011.0, limits, in_head=True)
    times.begin_body(1000.0)
    times.discount(1000.0)
    assert not times.is_late(2009.0, limits, in_head=False)
