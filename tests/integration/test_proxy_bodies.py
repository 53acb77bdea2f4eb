"""Bodies of any size and framing reach the engine unchanged, and responses the client."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json

import httpx
import pytest
from rigs.engine import STREAM, Call, chunked, http_response, scripted_engine
from rigs.proxy import running_proxy

from cortex_common.config.access import LimitsSection


def body_of(size: int) -> bytes:
    """Return a JSON body of at least that size."""
    return json.dumps({"model": "m", "messages": [], "pad": "é" * (size // 2)}).encode()


async def digest(call: Call) -> None:
    """Answer with the hash of the body."""
    await call.send(http_response(hashlib.sha256(call.body).hexdigest().encode()))


@pytest.mark.parametrize("size", [0, 1000, 70_000, 5 << 20])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_of_any_size_reaches_the_engine_unchanged(size, framing):
    """A body with a length or in chunks, of a few bytes or megabytes, arrives unchanged."""
    body = body_of(size)
    async with (
        scripted_engine(digest) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"
        if framing == "length":
            writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        else:
            pieces = [body[at : at + 65_521] for at in range(0, len(body), 65_521)]
            writer.write(head + b"transfer-encoding: chunked\r\n\r\n")
            writer.write(chunked(*pieces) + b"0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(64) == hashlib.sha256(body).hexdigest().encode()
        writer.close()
        await rig.wait_idle()


async def test_a_body_that_comes_byte_by_byte_is_the_same_body():
    """A body that is written slowly arrives unchanged."""
    body = body_of(40)
    async with (
        scripted_engine(digest) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        request = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
        for at in range(len(request)):
            writer.write(request[at : at + 1])
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(64) == hashlib.sha256(body).hexdigest().encode()
        writer.close()
        await rig.wait_idle()


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
async def test_an_answer_is_the_same_however_the_engine_cuts_it(piece):
    """A response arrives unchanged in writes from one byte to a mebibyte."""
    answer = json.dumps({"object": "list", "data": ["é" * min(piece * 40, 1 << 20)]}).encode()

    async def pieces(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(0, len(answer), piece):
            await call.send(chunked(answer[at : at + piece]))
        await call.send(b"0\r\n\r\n")

    async with (
        scripted_engine(pieces) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        async with httpx.AsyncClient(base_url=rig.url) as client:
            got = await client.post("/v1/embeddings", json={"model": "m", "input": "x"})
        assert got.content == answer
        await rig.wait_idle()


async def test_a_compressed_body_is_rejected_as_such():
    """A compressed body is rejected as such, not as invalid JSON; a charset in content-encoding is accepted."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):

        async def ask(coding: str, body: bytes) -> httpx.Response:
            headers = {"content-encoding": coding}
            return await client.post("/v1/chat/completions", content=body, headers=headers)

        packed = await ask("gzip", gzip.compress(body_of(10)))
        assert (packed.status_code, packed.json()["error"]["code"]) == (400, "malformed_body")
        assert "compressed (gzip)" in packed.json()["error"]["message"]
        assert (await ask("utf-8", body_of(10))).status_code == 200
        await rig.wait_idle()


async def test_an_http_1_0_client_gets_no_chunks():
    """For an HTTP/1.0 client the end of the connection ends the response, streamed or not."""
    async with (
        scripted_engine() as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        body = b'{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}'
        head = b"POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        answer = await reader.read()
        assert b"transfer-encoding" not in answer
        assert answer.partition(b"\r\n\r\n")[2] == STREAM
        writer.close()
        await rig.wait_idle()


async def test_an_incomplete_body_leaves_nothing_behind():
    """An incomplete request reaches no engine and leaves nothing in flight."""
    async with (
        scripted_engine(digest) as engine,
        running_proxy({"m": engine.url}) as rig,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        await writer.drain()
        async with asyncio.timeout(5):
            while not rig.inflight.requests:
                await asyncio.sleep(0)
        writer.close()
        await rig.wait_idle()
        assert engine.calls == []


async def test_all_bodies_together_have_a_limit() -> None:
    """Unfinished bodies of many connections don't fill the memory; what ended makes room."""
    limits = LimitsSection(max_bodies_mb=1)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    async with running_proxy({}, limits=limits) as rig:
        _, first = await asyncio.open_connection("127.0.0.1", rig.port)
        first.write(head + b"x" * 900_000)
        while rig.context.bodies.held < 900_000:
            await asyncio.sleep(0.01)
        reader, second = await asyncio.open_connection("127.0.0.1", rig.port)
        second.write(head + b"x" * 900_000)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
        assert answer.startswith(b"HTTP/1.1 503")
        assert rig.context.bodies.held <= 1 << 20
        first.close()
        second.close()
        await rig.wait_idle()
        assert rig.context.bodies.held == 0
