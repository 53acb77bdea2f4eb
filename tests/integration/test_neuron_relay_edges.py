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
    """An engine of someone else's with one loaded model, whose answers a test writes byte by byte.

    Attributes:
        begun: the script has reached the place where it stalls.
        gone: its caller closed the connection.
        sent: bytes that left.
    """

    script: Script
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
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
        self.begun.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.gone.set()


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
    """Send a request, or its beginning when `length` says more than `body` has."""
    reader, writer = await asyncio.open_connection("127.0.0.1", neuron.port, limit=2**20)
    size = len(body) if length is None else length
    head = b"POST %b HTTP/1.1\r\nhost: n\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (path.encode(), size) + body)
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
    """Whatever either side was doing: the engine sees the end, and nothing is logged as broken."""
    async with relaying(tmp_path, script) as (neuron, engine, path):
        _, writer = await ask(neuron, path, length=length)
        async with asyncio.timeout(10):
            await engine.begun.wait()
            assert sum(neuron.runtime.inflight.relayed.values()) == 1
            writer.close()
            await engine.gone.wait()
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
    """Of 64 MiB an engine gets rid of what sockets hold while nobody reads; then everything arrives."""
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
    """Errors pass unchanged, a cut answer stays cut, and an engine that says nothing usable is a 502 of ours."""

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


async def test_an_engine_that_reads_no_further_is_not_said_to_have_failed(tmp_path: Path):
    """An upload to a route that it lacks is the caller's mistake: with 502 some of them would close the model."""

    async def refuse(
        _engine: Engine, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(REFUSAL + ERROR)
        await writer.drain()

    async with relaying(tmp_path, refuse) as (neuron, _, path):
        assert await upload(neuron, path) == b"HTTP/1.1 400"


async def test_an_engine_that_dies_amid_an_upload_is_said_to_have_failed(tmp_path: Path):
    """With 502 the gateway asks another instance, as the request is not to blame."""

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
    head = f"POST {path} HTTP/1.1\r\nhost: n\r\ncontent-length: 20000000\r\n\r\n"
    writer.write(head.encode() + b"x" * 20_000_000)
    async with asyncio.timeout(10):
        heard = await reader.readuntil(b"\r\n")
    writer.close()
    return heard[: len(b"HTTP/1.1 200")]


async def test_no_stream_fails_because_the_engine_closes_its_connections(tmp_path: Path):
    """A request over a connection that is being closed is sent once more over a new one.

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
