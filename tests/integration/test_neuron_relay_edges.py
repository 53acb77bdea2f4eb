"""The relay between callers and engines that stall, stop and break, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from engines.served_neuron import ServedNeuron, served
from rigs.engine import STREAM, chunked
from rigs.inprocess_gateway import running_gateway
from rigs.server import serving

from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from cortex_common.schema.instances import InstanceState

Script = Callable[["Engine", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)


@dataclass
class Engine:
    """An attached engine with one loaded model, whose responses a test writes byte by byte.

    Attributes:
        stalled: the script has reached the place where it stalls.
        disconnected: its caller closed the connection.
        sent: bytes that left.
    """

    script: Script
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST /v1/chat"):
                await self.script(self, reader, writer)
            else:
                loaded = {"id": "m", "status": "loaded"}
                listed = {"data": [loaded]} if b"/v1/models " in head else loaded
                body = json.dumps(listed).encode()
                head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
                writer.write(head % len(body) + body)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def until_gone(self, reader: asyncio.StreamReader) -> None:
        """Stall until the caller closes."""
        self.stalled.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.disconnected.set()


@contextlib.asynccontextmanager
async def relaying(
    directory: Path, script: Script
) -> AsyncIterator[tuple[ServedNeuron, Engine, str]]:
    """Run a neuron that relays to such an engine, and the path of the model's chat."""
    engine = Engine(script)
    async with serving(engine.serve) as url, attached(directory, url) as (neuron, path):
        yield neuron, engine, path


@contextlib.asynccontextmanager
async def attached(directory: Path, url: str) -> AsyncIterator[tuple[ServedNeuron, str]]:
    """Run a neuron that relays to the engine at a URL, and the path of the model's chat."""
    config = NeuronConfig(
        neuron=NeuronSection(listen="0.0.0.0:0", state_dir=directory / "state"),
        harnesses=(HarnessEntry(name="shared", kind="attach", url=url),),
    )
    async with served(config) as neuron:
        async with asyncio.timeout(10):
            async for _ in neuron.runtime.changes.subscribe(1.0):
                (instance,) = neuron.runtime.instances.snapshots
                if instance.state is InstanceState.READY:
                    break
        yield neuron, f"/engines/{instance.id}/v1/chat/completions"


async def ask(
    neuron: ServedNeuron, path: str, body: bytes = b"{}", length: int | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, or an incomplete one if `length` is larger than `body`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", neuron.port, limit=2**20)
    size = len(body) if length is None else length
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (path.encode(), neuron.runtime.token.encode(), size) + body)
    await writer.drain()
    return reader, writer


async def silent(engine: Engine, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Read the request and send nothing."""
    await engine.until_gone(reader)


async def head_only(
    engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send the response head and nothing more."""
    writer.write(HEAD)
    await engine.until_gone(reader)


async def midway(
    engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send half of the response and stop."""
    writer.write(HEAD + PIECE)
    await engine.until_gone(reader)


@pytest.mark.parametrize("script", [silent, head_only, midway])
@pytest.mark.parametrize("length", [None, 1000], ids=["sent", "sending"])
async def test_a_caller_that_leaves_ends_the_engines_side(
    tmp_path: Path, script: Script, length: int | None, caplog: pytest.LogCaptureFixture
):
    """When the caller disconnects at any point, the engine's connection closes, and nothing is logged as an error."""
    async with relaying(tmp_path, script) as (neuron, engine, path):
        _, writer = await ask(neuron, path, length=length)
        async with asyncio.timeout(10):
            await engine.stalled.wait()
            assert sum(neuron.runtime.inflight.relayed.values()) == 1
            writer.close()
            await engine.disconnected.wait()
            while neuron.runtime.inflight.relayed:
                await asyncio.sleep(0)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def flood(engine: Engine, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send 64 MiB as fast as the caller reads it."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    writer.write(HEAD)
    for _number in range(1024):
        writer.write(PIECE)
        await writer.drain()
        engine.sent += 65536
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def test_a_slow_reader_slows_the_engine_and_fills_no_memory(tmp_path: Path):
    """While the caller does not read, the engine can send only what the sockets buffer; then everything arrives."""
    async with relaying(tmp_path, flood) as (neuron, engine, path):
        reader, writer = await ask(neuron, path)
        async with asyncio.timeout(60):
            await reader.readuntil(b"\r\n\r\n")
            before = -1
            while engine.sent != before:
                before = engine.sent
                await asyncio.sleep(0.5)
            assert 0 < engine.sent < 24 * 2**20
            received = 0
            while chunk := await reader.read(2**20):
                received += chunk.count(b"x")
        writer.close()
        assert received == engine.sent == 64 * 2**20


ERROR = b'{"error": {"message": "too long", "type": "exceed_context_size_error"}}'
REFUSAL = b"HTTP/1.1 400 No\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n" % len(ERROR)
LATE = b'data: {"error": {"message": "out of memory"}}\n\n'


@pytest.mark.parametrize(
    ("answer", "begin", "end"),
    [
        (REFUSAL + ERROR, b"HTTP/1.1 400", ERROR),
        (HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(LATE), LATE), b"HTTP/1.1 200", b"0\r\n\r\n"),
        (HEAD + b"%x\r\n%b\r\n" % (len(LATE), LATE), b"HTTP/1.1 200", LATE + b"\r\n"),
        (REFUSAL + ERROR[:9], b"HTTP/1.1 400", ERROR[:9]),
        (b"", b"HTTP/1.1 502", b"}"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 502", b"}"),
    ],
    ids=["refusal", "late error", "cut stream", "cut answer", "nothing", "nonsense"],
)
async def test_what_an_engine_says_at_last_is_what_its_caller_hears(
    tmp_path: Path, answer: bytes, begin: bytes, end: bytes
):
    """Errors pass unchanged, an incomplete response stays incomplete, and an unusable response is the relay's 502."""

    async def say(
        _engine: Engine, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(answer)
        await writer.drain()

    async with relaying(tmp_path, say) as (neuron, _, path):
        reader, writer = await ask(neuron, path)
        async with asyncio.timeout(10):
            heard = await reader.read(-1)
        writer.close()
    assert heard.startswith(begin)
    assert heard.endswith(end)
    assert (b"retry-after: 7" in heard) == (b"400" in begin)


async def test_an_engine_that_stops_reading_an_upload_has_not_failed(tmp_path: Path):
    """An upload to a missing route gets the engine's 404, not a 502 that would open the circuit breaker."""

    async def refuse(
        _engine: Engine, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(REFUSAL + ERROR)
        await writer.drain()

    async with relaying(tmp_path, refuse) as (neuron, _, path):
        assert await upload(neuron, path) == b"HTTP/1.1 400"


async def test_an_engine_that_dies_during_an_upload_has_failed(tmp_path: Path):
    """If the engine breaks before its response, the relay returns 502, so that the gateway tries another instance."""

    async def die(_engine: Engine, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        writer.transport.abort()

    server = await asyncio.start_server(Engine(die).serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, attached(tmp_path, url) as (neuron, path):
        assert await upload(neuron, path) == b"HTTP/1.1 502"


async def upload(neuron: ServedNeuron, path: str) -> bytes:
    """Return the response to a body of 20 MB."""
    reader, writer = await asyncio.open_connection("127.0.0.1", neuron.port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20000000\r\n"
    head += f"authorization: Bearer {neuron.runtime.token}\r\n\r\n"
    writer.write(head.encode() + b"x" * 20_000_000)
    async with asyncio.timeout(10):
        heard = await reader.readuntil(b"\r\n")
    writer.close()
    return heard[: len(b"HTTP/1.1 200")]


async def test_no_stream_fails_because_the_engine_closes_its_connections(tmp_path: Path):
    """A request over a connection that the engine closes is sent again over a new one.

    llama-server announces that it keeps the connection and closes it after each streamed response.
    """

    async def answer_and_close(
        _engine: Engine, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(HEAD + chunked(STREAM) + b"0\r\n\r\n")
        await writer.drain()

    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with (
        relaying(tmp_path, answer_and_close) as (neuron, _, _),
        running_gateway(neurons={"n": neuron.url}) as served,
        httpx.AsyncClient(base_url=served.url, timeout=30) as client,
    ):
        async with asyncio.timeout(20):
            while not served.gateway.fleet.ready("m"):
                await asyncio.sleep(0.01)
        for _ in range(300):
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            assert response.text.endswith("data: [DONE]\n\n")
        assert not neuron.runtime.inflight.relayed


async def test_the_relays_own_errors_are_told_apart_from_an_engines(tmp_path: Path):
    """A 502 of an engine is its answer; with a 502, 404 or 503 of the relay no engine has answered."""
    answers = [b"HTTP/1.1 502 Bad\r\ncontent-length: 0\r\n\r\n", b""]

    async def fail(
        _engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readexactly(len(b"{}"))
        writer.write(answers.pop(0))

    async with (
        relaying(tmp_path, fail) as (neuron, _, path),
        httpx.AsyncClient(base_url=neuron.url, headers=neuron.headers) as client,
    ):
        responses = [
            await client.post(to, content=b"{}") for to in (path, path, "/engines/no/v1/x")
        ]
        headers = [response.headers.get("x-cortex-relay-error") for response in responses]
        assert [response.status_code for response in responses] == [502, 502, 404]
        assert headers == [None, "upstream_failed", "model_not_found"]
