"""Requests over a kept connection, most with the same head as the previous one."""

from __future__ import annotations

import asyncio
import hashlib
import json

import httpx
import pytest
from rigs.engine import Call, http_response, scripted_engine
from rigs.fleet import free_port
from rigs.proxy import running_proxy

from cortex_common.config.access import KeyEntry
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of

HEAD = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\nContent-Length: {size}\r\n\r\n"


async def what_came(call: Call) -> None:
    """Answer with the hash of the body and the user agent."""
    agent = next(line for line in call.head.split(b"\r\n") if line.startswith(b"user-agent: "))
    expected = {"sum": hashlib.sha256(call.body).hexdigest(), "agent": agent[12:].decode()}
    await call.send(http_response(json.dumps(expected).encode()))


def request(pad: str, agent: str = "one") -> tuple[bytes, dict[str, str]]:
    """Send a request and return what its response says."""
    body = json.dumps({"model": "m", "prompt": pad}).encode()
    expected = {"sum": hashlib.sha256(body).hexdigest(), "agent": agent}
    return HEAD.format(agent=agent, size=len(body)).encode() + body, expected


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the next response and return its status and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.lower().split(b"\r\n")]
    length = next(int(value) for name, _, value in lines if name == b"content-length")
    return int(head[9:12]), json.loads(await reader.readexactly(length))


async def test_each_request_of_a_connection_is_answered_for_itself():
    """Equal heads with other bodies, split reads, pipelining, chunks and other routes are all answered."""
    inner, _ = request("inner")
    async with (
        scripted_engine(what_came) as engine,
        running_proxy({"m": engine.url}) as rig,
        asyncio.timeout(20),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        for pad, agent in (
            *(("a" * n, "one") for n in (1, 1, 2, 100, 0, 40_000, 3)),
            ("b", "two"),
            ("b", "two"),
            ("b", "one"),
            (inner.decode(), "one"),
            (inner.decode(), "one"),
        ):
            sent, expected = request(pad, agent)
            writer.write(sent)
            assert await answer(reader) == (200, expected)

        sent, expected = request("in pieces")
        for cut in (10, len(sent) - 3):
            writer.write(sent[:cut])
            await writer.drain()
            for _ in range(9):  # turns of the loop, in which the gateway reads
                await asyncio.sleep(0)
            writer.write(sent[cut:])
            assert await answer(reader) == (200, expected)
        for _ in range(2):
            writer.write(sent + sent)
            assert [await answer(reader), await answer(reader)] == [(200, expected)] * 2
            writer.write(sent)
            assert await answer(reader) == (200, expected)
        writer.write(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await answer(reader))[0] == 401  # not for strangers
        writer.write(sent)
        assert await answer(reader) == (200, expected)
        body = sent.partition(b"\r\n\r\n")[2]
        chunks = sent.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
        writer.write(chunks + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert await answer(reader) == (200, expected)
        writer.write(sent)
        assert await answer(reader) == (200, expected)
        writer.close()
        await rig.wait_idle()
    assert len(engine.calls) == 23


async def test_a_revoked_key_is_rejected_on_an_open_connection():
    """A repeated head is authenticated again."""
    ring = Keyring()
    ring.replace([KeyEntry(name="k", hash=hash_of("secret"))], (), 0.0)
    async with (
        scripted_engine(what_came) as engine,
        running_proxy({"m": engine.url}, access_control=AccessControl(ring)) as rig,
        httpx.AsyncClient(base_url=rig.url, headers={"authorization": "Bearer secret"}) as client,
    ):
        body = {"model": "m", "prompt": "a"}
        for _ in range(3):
            assert (await client.post("/v1/embeddings", json=body)).status_code == 200
        ring.replace([KeyEntry(name="k", hash=hash_of("another"))], (), 1.0)
        assert (await client.post("/v1/embeddings", json=body)).status_code == 401
        assert len(engine.calls) == 3


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/completions"])
async def test_answers_with_the_same_head_keep_their_own_lengths(route: str):
    """Over one kept connection, engine responses with equal and with different heads are parsed."""
    bodies = [
        json.dumps({"choices": [{"text": "x" * n, "finish_reason": "stop"}]}).encode()
        for n in (5, 5, 9, 2000, 0)
    ]
    answers = [
        *map(http_response, bodies),
        http_response(bodies[0], kind=b"application/x-other"),
        http_response(bodies[2]),
    ]

    async def script(call: Call) -> None:
        await call.send(answers[len(engine.calls) - 1])

    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for sent in answers:
            got = await client.post(route, json={"model": "m", "input": "a", "prompt": "a"})
            assert got.content == sent.partition(b"\r\n\r\n")[2]
            assert got.headers["content-length"] == str(len(got.content))
        assert engine.live == 1


async def test_a_request_is_sent_again_if_the_engine_closed_the_connection():
    """A cached head does not authenticate another connection."""

    async def script(call: Call) -> None:
        await what_came(call)
        if len(engine.calls) == 2:
            call.writer.close()

    async with (
        scripted_engine(script) as engine,
        running_proxy({"m": engine.url, "gone": f"http://127.0.0.1:{free_port()}"}) as rig,
        httpx.AsyncClient(base_url=rig.url) as client,
    ):
        for _ in range(4):
            got = await client.post("/v1/embeddings", json={"model": "m", "prompt": "a"})
            assert got.status_code == 200
        body = {"model": "gone", "prompt": "a"}
        assert (await client.post("/v1/embeddings", json=body)).status_code == 502
        body = {"model": "m", "prompt": "a"}
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
