"""A scriptable engine: tests decide which bytes it sends, including failures that real engines rarely show."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from rigs.server import serving

CHUNK = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = b"".join([*(CHUNK % word for word in (b"one", b"two", b"three")), LAST, USAGE, DONE])
COMPLETION = (
    b'{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"one two"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'
)
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunked(*pieces: bytes) -> bytes:
    """Encode pieces as HTTP chunks, without the terminating chunk."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def http_response(
    body: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json"
) -> bytes:
    """Return a complete HTTP response with a content length."""
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


@dataclass
class Call:
    """One received request and its connection."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def send(self, *pieces: bytes) -> None:
        """Write the pieces one by one."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def wait_closed(self) -> None:
        """Wait until the gateway has closed this connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Script = Callable[[Call], Awaitable[None]]


async def answer_stream(call: Call) -> None:
    """Send the default stream, which has no errors."""
    await call.send(SSE_HEAD + chunked(STREAM) + b"0\r\n\r\n")


@dataclass
class ScriptedEngine:
    """A listening engine.

    Attributes:
        url: base URL of the engine.
        script: called for each request; when it returns, the connection stays open for the next one.
        calls: all requests received so far.
        live: number of open connections.
        accepted: number of connections accepted so far.
    """

    url: str = ""
    script: Script = answer_stream
    calls: list[Call] = field(default_factory=list)
    live: int = 0
    accepted: int = 0
    server: asyncio.Server | None = None
    _called: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def call(self, number: int) -> Call:
        """Wait for the request with this number, counted from 0, and return it."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) > number)
        return self.calls[number]

    def stop_listening(self) -> None:
        """Accept no more connections; open ones stay open."""
        assert self.server is not None
        self.server.close()

    async def wait_accepted(self, number: int) -> None:
        """Wait until that many connections have been accepted."""
        async with self._called:
            await self._called.wait_for(lambda: self.accepted >= number)

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        async with self._called:
            await self._called.wait_for(lambda: self.live == 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: the script responds to each request."""
        self.live += 1
        async with self._called:
            self.accepted += 1
            self._called.notify_all()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                call = Call(head, await reader.readexactly(length), writer, reader)
                async with self._called:
                    self.calls.append(call)
                    self._called.notify_all()
                await self.script(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            async with self._called:
                self.live -= 1
                self._called.notify_all()


@contextlib.asynccontextmanager
async def scripted_engine(
    script: Script = answer_stream, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedEngine]:
    """Run an engine on a free loopback port."""
    engine = ScriptedEngine(script=script)

    def started(server: asyncio.Server) -> None:
        engine.server = server

    async with serving(engine.serve, tls, started) as engine.url:
        yield engine
