"""Hostile and broken HTTP against the gateway, over raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl

import httpx
import pytest
from rigs.engine import Call, answer_stream, scripted_engine
from rigs.inprocess_gateway import InProcessGateway, running_gateway
from rigs.neuron import scripted_neuron

from cortex_common.config.access import LimitsSection

CHAT = b"/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
IMPATIENT = LimitsSection(header_timeout_s=0.2, body_timeout_s=0.2, max_header_kb=4)


@contextlib.asynccontextmanager
async def served(limits: LimitsSection | None = None, engine_script=answer_stream):
    """Run a gateway with one model on a scripted engine."""
    async with (
        scripted_engine(engine_script) as engine,
        scripted_neuron({"m": engine.url}) as neuron,
        running_gateway(neurons={"n": neuron.url}, limits=limits) as gateway,
    ):
        async with asyncio.timeout(10):
            while not gateway.gateway.fleet.ready("m"):
                await asyncio.sleep(0.01)
        yield gateway, engine


def post(*headers: bytes, body: bytes = BODY, path: bytes = CHAT) -> bytes:
    """Return a raw request with exactly these headers."""
    return b"\r\n".join([b"POST %b HTTP/1.1" % path, b"host: localhost", *headers, b"", body])


LENGTH = b"content-length: %d" % len(BODY)


async def send(gateway: InProcessGateway, *pieces: bytes, seconds: float = 8.0) -> bytes:
    """Send the pieces and read until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            async with asyncio.timeout(seconds):
                return await reader.read()
        return b""
    finally:
        writer.close()


async def still_serves(gateway: InProcessGateway) -> None:
    """Check that a good request is answered."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as http:
        answer = await http.post(CHAT.decode(), content=BODY)
        assert answer.status_code == 200
        assert answer.content.endswith(b"data: [DONE]\n\n")
    await gateway.wait_idle()


DOUBTFUL = (
    [LENGTH, b"transfer-encoding: chunked"],
    [b"transfer-encoding: chunked", LENGTH],
    [LENGTH, b"content-length: 3"],
    [LENGTH, LENGTH],
    [b"content-length: +5"],
    [b"content-length: 5 5"],
    [b"content-length: 5,5"],
    [b"content-length: 99999999999999999999999"],
    [b"content-length : 5"],
    [b"transfer-encoding: chunked, identity"],
    [b"transfer-encoding: xchunked"],
    [LENGTH, b"x-nul: a\x00b"],
    [LENGTH, b"x-nul\x00: b"],
    [LENGTH, b" x-folded: b"],
    [LENGTH, b"x-bare: a\rb"],
    [LENGTH, b"no colon here"],
)
"""Two lengths, odd lengths, unknown codings, NUL, folded and bare lines."""


@pytest.mark.parametrize("path", [CHAT, b"/operator/v1/models/load", b"/health"])
async def test_a_request_of_doubtful_length_or_head_is_refused(path):
    """Ambiguous requests get 400 or a closed connection, and reach no engine."""
    async with served() as (gateway, engine):
        for headers in DOUBTFUL:
            smuggled = b"GET /operator/v1/fleet HTTP/1.1\r\nhost: localhost\r\n\r\n"
            request = post(*headers, body=b"0\r\n\r\n" + smuggled, path=path)
            answer = await send(gateway, request)
            assert not answer or answer.startswith(b"HTTP/1.1 400 "), (headers, answer[:100])
            assert answer.count(b"HTTP/1.1 ") <= 1, (headers, answer)
        assert not engine.calls
        await still_serves(gateway)


JUNK = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    b"\x00" * 1000,
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    b"POST /v1/chat/\xff\xfe HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n",
)


async def test_what_is_no_request_is_closed():
    """TLS on the plain port, random bytes, other protocols and other methods neither hang nor affect others."""
    async with served(IMPATIENT) as (gateway, _):
        await asyncio.gather(*(send(gateway, junk) for junk in JUNK))
        await still_serves(gateway)


@pytest.mark.parametrize("split", [0, 40])
async def test_an_offer_to_speak_http2_is_declined_and_its_request_answered(split):
    """An h2c upgrade with a body, as Java's HttpClient sends it, is answered over HTTP/1.1."""
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
    request = post(LENGTH, *offer, body=BODY)
    async with served() as (gateway, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for piece in (request[: len(request) - split], request[len(request) - split :]):
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"0\r\n\r\n")
            writer.write(post(LENGTH, body=BODY))
            again = await reader.readuntil(b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert again.startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_client_of_http10_is_not_left_waiting_for_the_end():
    """An HTTP/1.0 request with keep-alive, as `ab -k` sends it, is answered and the connection closed."""
    request = post(LENGTH, b"connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with served() as (gateway, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request)
        async with asyncio.timeout(3):
            answer = await reader.read()
        assert b"\r\nconnection: close\r\n" in answer
        writer.close()


async def test_a_head_that_never_ends_times_out():
    """A client that sends its head slowly gets 408 at the limit."""
    async with served(IMPATIENT) as (gateway, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\n" % CHAT)
        async with asyncio.timeout(30):
            dribble = asyncio.create_task(_dribble(writer, b"x-a: b\r\n"))
            answer = await reader.readuntil(b'"code":"request_timed_out"')
            await dribble
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        writer.close()
        assert not gateway.server.server_state.connections
        await still_serves(gateway)


async def _dribble(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Write until the peer has closed."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("start", [b"", b"\r\n\r\n", b"P"])
async def test_a_silent_connection_is_closed(start):
    """New connections that send nothing, empty lines or one letter are closed at the limit."""
    async with served(IMPATIENT) as (gateway, _):
        await send(gateway, start)
        assert not gateway.server.server_state.connections


async def test_silence_after_an_answer_is_no_offence():
    """A kept connection may be idle for longer than the head timeout."""
    async with served(IMPATIENT) as (gateway, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for _ in range(2):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            await asyncio.sleep(1.5)  # two checks of the connections
        writer.close()


async def test_a_long_answer_is_no_offence():
    """A stream that takes longer than the request timeouts is not cut."""

    async def slow(call: Call) -> None:
        await asyncio.sleep(1.5)  # longer than both limits, and a check
        await answer_stream(call)

    async with served(IMPATIENT, slow) as (gateway, _):
        await still_serves(gateway)


@pytest.mark.parametrize("path", [CHAT, b"/operator/v1/models/load"])
async def test_a_body_that_stalls_is_given_up(path):
    """After half a body and silence the connection is closed, and no engine is used."""
    async with served(IMPATIENT) as (gateway, engine):
        await send(gateway, post(LENGTH, body=BODY[:10], path=path))
        await gateway.wait_idle()
        assert not engine.calls
        await still_serves(gateway)


@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_huge_head_is_refused(pieces):
    """A head over the limit gets 431, in one write or many."""
    async with served(IMPATIENT) as (gateway, engine):
        lines = [b"x-%d: %b" % (n, b"y" * 100) for n in range(60)]
        request = post(LENGTH, *lines)
        size = -(-len(request) // pieces)
        parts = [request[n : n + size] for n in range(0, len(request), size)]
        answer = await send(gateway, *parts)
        assert answer.startswith(b"HTTP/1.1 431 ") or not answer
        if pieces == 1:
            assert b'"code":"head_too_large"' in answer
        assert not engine.calls
        await still_serves(gateway)


async def test_a_large_body_in_one_read_is_no_large_head():
    """The body does not count against the head limit."""
    async with served(IMPATIENT) as (gateway, _):
        body = json.dumps({"model": "m", "messages": [], "x": "y" * 50_000}).encode()
        length = b"content-length: %d" % len(body)
        answer = await send(gateway, post(length, b"connection: close", body=body))
        assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_connections_are_bounded():
    """A connection over the limit is closed, and the others are served."""
    async with served(LimitsSection(max_connections=3)) as (gateway, _):
        kept = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        async with asyncio.timeout(5):
            while len(gateway.server.server_state.connections) < 3:
                await asyncio.sleep(0)
        assert await send(gateway, post(LENGTH), seconds=5) == b""
        for _, writer in kept:
            writer.close()
        async with asyncio.timeout(5):
            while gateway.server.server_state.connections:
                await asyncio.sleep(0)
        await still_serves(gateway)


async def test_credentials_and_hop_by_hop_headers_stop_here():
    """Credentials, cookies and hop-by-hop headers are not forwarded, in either direction."""

    async def telling(call: Call) -> None:
        body = b"{}"
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nkeep-alive: timeout=5\r\nserver: e\r\n"
            b"proxy-authenticate: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    async with served(None, telling) as (gateway, engine):
        secret = dict.fromkeys(("authorization", "x-api-key", "cookie", "x-private"), "S3CRET")
        hop = {"connection": "x-private, close", "te": "trailers", "proxy-authorization": "S3CRET"}
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            body = {"model": "m", "messages": []}
            answer = await http.post(CHAT.decode(), json=body, headers=secret | hop)
        head = (await engine.call(0)).head
        assert b"S3CRET" not in head
        for name in (b"connection", b"te:", b"keep-alive", b"proxy-authorization"):
            assert b"\r\n" + name not in head.lower()
        for name in ("keep-alive", "server", "proxy-authenticate"):
            assert name not in answer.headers


async def test_a_request_id_is_honoured_when_it_is_plain_and_made_when_not():
    """A request id that could forge a log line or a header is replaced."""
    async with served() as (gateway, _), httpx.AsyncClient(base_url=gateway.url) as http:
        for sent, kept in (("abc-1", True), ('x" injected="1', False), ("y" * 200, False)):
            answer = await http.post(CHAT.decode(), content=BODY, headers={"x-request-id": sent})
            assert (answer.headers["x-request-id"] == sent) is kept


async def test_a_thousand_hostile_connections_leave_nothing_behind():
    """After a mix of aborted, malformed and stalled requests no connection, request or count is left."""
    mix = (
        post(LENGTH)[:40],
        post(LENGTH, body=BODY[:5]),
        post(LENGTH, b"transfer-encoding: chunked"),
        post(b"transfer-encoding: chunked", body=b"5\r\nabc"),
        b"\r\n",
        post(LENGTH),
    )
    async with served(IMPATIENT) as (gateway, _):

        async def attack(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(mix[number % len(mix)])
            if number % 3 == 0:
                writer.transport.abort()
            else:
                await writer.drain()
                writer.close()

        for start in range(0, 1000, 100):
            await asyncio.gather(*(attack(n) for n in range(start, start + 100)))
        async with asyncio.timeout(15):
            while gateway.server.server_state.connections:
                await asyncio.sleep(0.02)
        await still_serves(gateway)
        assert gateway.gateway.context.admission.admitted == 0
        assert gateway.gateway.access_control.keyring.anonymous.account.in_flight == 0


def test_a_client_context_checks_names():
    """The TLS context for nodes verifies certificate and name."""
    from cortex_common.net.tls import client_context

    context = client_context(None)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
