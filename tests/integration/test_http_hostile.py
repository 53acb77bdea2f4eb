"""Hostile HTTP on a gateway's socket: each is answered immediately, and no other client waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from rigs.engine import scripted_engine
from rigs.proxy import ProxyRig, running_proxy

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: h2c\r\n"


@pytest.fixture
async def rig() -> AsyncIterator[ProxyRig]:
    """A gateway without engines."""
    async with running_proxy({}) as rig:
        yield rig


async def exchange(rig: ProxyRig, data: bytes) -> bytes:
    """Send bytes and return everything that comes until the gateway closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1 << 24)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def statuses(answer: bytes) -> list[bytes]:
    """Return the status codes of all responses."""
    return [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]


async def test_pipelined_upgrades_are_declined_one_by_one(rig: ProxyRig):
    """Each offer to switch protocols is ignored, however many come in one write."""
    count = 300
    last = HEALTH + b"connection: close\r\n\r\n"
    answer = await exchange(rig, (HEALTH + UPGRADE + b"\r\n") * count + last)
    assert statuses(answer) == [b"200"] * (count + 1)


CLOSE = b"connection: close\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
ODD = {
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n" + CLOSE, b"4"),
    "absolute form": (b"GET http://x/health HTTP/1.1\r\nhost: x\r\n" + CLOSE, b"200"),
    "absolute form without a path": (b"GET http://x HTTP/1.1\r\nhost: x\r\n" + CLOSE, b"200"),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
    "path not UTF-8": (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
    "query not UTF-8": (b"GET /health?\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
    "quoted path not UTF-8": (b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\n" + CLOSE, b"4"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS", b"400"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    "endless header": (b"GET /health HTTP/1.1\r\nx: " + b"y" * 70_000, b"431"),
    "many headers": (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", b"431"),
    "long target": (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\n\r\n", b"431"),
    "length of 23 digits": (HEALTH + b"content-length: %d\r\n\r\n" % 10**22, b"400"),
    "long body of a control route": (HEALTH + b"content-length: 1048577\r\n\r\n", b"413"),
    "endless trailers": (CHAT + CHUNKED + b"0\r\n" + b"x: y\r\n" * 100_000, b"431"),
    "endless chunk extension": (CHAT + CHUNKED + b"0;" + b"x" * 200_000, b"4"),
    "chunk without a size": (CHAT + CHUNKED + b"zz\r\n", b"400"),
}


@pytest.mark.parametrize(("request_", "status"), ODD.values(), ids=ODD)
async def test_odd_requests_are_answered(rig: ProxyRig, request_: bytes, status: bytes):
    """Well-formed or not: a status of class 4 where it can't be served, and the connection is closed."""
    answer = await exchange(rig, request_)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert len(statuses(answer)) == 1


async def test_trailers_are_no_headers(rig: ProxyRig):
    """A chunked body's trailers can't add a header to its request."""
    body = b"2\r\n{}\r\n0\r\nauthorization: Bearer evil\r\n\r\n"
    answer = await exchange(
        rig, CHAT + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + body
    )
    assert statuses(answer) == [b"400"]
    assert b"missing_model" in answer or b"names no model" in answer


async def test_a_rejected_request_waits_for_the_response_before_it(rig: ProxyRig):
    """What can't be answered in order is not answered: the first response must not be another's."""
    async with (
        scripted_engine(lambda call: call.wait_closed()) as engine,
        running_proxy({"m": engine.url}) as held,
    ):
        body = b'{"model":"m","messages":[]}'
        first = CHAT + b"content-length: %d\r\n\r\n" % len(body) + body
        too_long = HEALTH + b"content-length: 9999999\r\n\r\n"
        assert not await exchange(held, first + too_long)
