"""HTTP on the gateway's inference routes: pipelining, Expect: 100-continue and HTTP/1.0, on real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest
from rigs.engine import Call, answer_stream, http_response, scripted_engine
from rigs.proxy import ProxyRig, running_proxy

from cortex_common.config.gateway import GatewaySection

CHAT = "/v1/chat/completions"


def request(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """Return a POST to the chat route."""
    lines = [f"POST {CHAT} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chat(text: str = "hi", **fields: object) -> bytes:
    """Return the body of a chat request."""
    message = {"role": "user", "content": text}
    return json.dumps({"model": "m", "messages": [message], **fields}).encode()


async def connect(rig: ProxyRig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the gateway."""
    return await asyncio.open_connection("127.0.0.1", rig.port)


async def response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one response with a content-length; return its head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    return head, await reader.readexactly(length)


async def echo(call: Call) -> None:
    """Answer with the text of the request's last message."""
    text = json.loads(call.body)["messages"][-1]["content"]
    answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    await call.send(http_response(json.dumps(answer).encode()))


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Inference requests and others in one write get their responses in the order of the requests."""
    other = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with scripted_engine(echo) as engine, running_proxy({"m": engine.url}) as rig:
        reader, writer = await connect(rig)
        writer.write(request(chat("one")) + other + request(chat("two")) + request(chat("three")))
        for expected in (b'"one"', b'"ok"', b'"two"', b'"three"'):
            head, body = await asyncio.wait_for(response(reader), 10)
            assert head.startswith(b"HTTP/1.1 200"), head
            assert expected in body.replace(b": ", b":").replace(b'"status":', b""), body
        writer.close()


async def test_a_pipelined_body_can_arrive_later() -> None:
    """The head of the second request comes with the first request, its body after the first response."""
    async with scripted_engine(echo) as engine, running_proxy({"m": engine.url}) as rig:
        reader, writer = await connect(rig)
        second = request(chat("two" * 1000))
        writer.write(request(chat("one")) + second[:200])
        assert b"one" in (await asyncio.wait_for(response(reader), 10))[1]
        writer.write(second[200:])
        assert b"twotwo" in (await asyncio.wait_for(response(reader), 10))[1]
        writer.close()


async def test_many_pipelined_requests_that_are_refused() -> None:
    """Hundreds of refused requests in one write don't exhaust the stack."""
    async with running_proxy({}) as rig:
        reader, writer = await connect(rig)
        writer.write(request(b"{}") * 500)
        for _ in range(500):
            head, _ = await asyncio.wait_for(response(reader), 10)
            assert head.startswith(b"HTTP/1.1 400")
        writer.close()


async def test_a_disconnect_cancels_the_active_request_of_a_pipeline() -> None:
    """The engine sees the end of the active request, and queued ones never reach it."""

    async def hold(call: Call) -> None:
        await call.wait_closed()

    async with scripted_engine(hold) as engine, running_proxy({"m": engine.url}) as rig:
        _, writer = await connect(rig)
        writer.write(request(chat("one")) + request(chat("two")))
        await engine.call(0)
        writer.close()
        await rig.wait_idle()
        async with asyncio.timeout(10):
            await engine.wait_idle()
        assert len(engine.calls) == 1


@pytest.mark.parametrize("size", [10, 100_000])
async def test_expect_100_continue_is_answered_before_the_body(size: int) -> None:
    """The client gets 100 Continue once the head has been accepted, and then the response."""
    body = chat("x" * size)
    async with scripted_engine(echo) as engine, running_proxy({"m": engine.url}) as rig:
        reader, writer = await connect(rig)
        for _ in range(2):
            writer.write(
                request(b"", "expect: 100-continue").replace(
                    b"length: 0", b"length: %d" % len(body)
                )
            )
            interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            head, answer = await asyncio.wait_for(response(reader), 10)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"x" * size in answer
        writer.close()


async def test_a_refused_expectation_closes_the_connection() -> None:
    """A body that is too large is refused without 100 Continue; the client may not send it, so nothing can follow."""
    settings = GatewaySection(max_body_mb=1)
    async with running_proxy({}, settings=settings) as rig:
        reader, writer = await connect(rig)
        head = request(b"", "expect: 100-continue")
        writer.write(head.replace(b"length: 0", b"length: 2000000"))
        answer, _ = await asyncio.wait_for(response(reader), 10)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()
        writer.close()


async def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    """A stream for HTTP/1.0 has no chunks, and Expect is ignored."""
    async with scripted_engine(answer_stream) as engine, running_proxy({"m": engine.url}) as rig:
        reader, writer = await connect(rig)
        writer.write(request(chat(stream=True), "expect: 100-continue", version="1.0"))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"transfer-encoding" not in answer.lower()
        assert answer.endswith(b"data: [DONE]\n\n")
        writer.close()


async def test_get_on_an_inference_route_is_not_allowed() -> None:
    """The error names the method instead of an unknown path."""
    async with running_proxy({}) as rig:
        reader, writer = await connect(rig)
        writer.write(f"GET {CHAT} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head, body = await asyncio.wait_for(response(reader), 10)
        assert head.startswith(b"HTTP/1.1 405")
        assert b"GET" in body
        writer.close()
