"""The shortest way of an event: what a client gets by it is what it would get without."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httptools
from hypothesis import given
from hypothesis import strategies as st
from rigs.lazy_import import trustme

from cortex_http.address import Address
from cortex_http.connection import Connection
from cortex_http.headers import Headers
from cortex_http.pool import ConnectionPool
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.proxy.stream_fast_path import StreamFastPath

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
)
OTHER = (
    b'data: {"id":"1","choices":[{"index":0,"delta":{"tool_calls":[]},"finish_reason":null}]}\n\n'
)


OPENING = b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
BEGIN = HEAD + b"%x\r\n%b\r\n" % (len(OPENING), OPENING)


class Passing:
    """A receiver that repairs a stream and writes it to a client, through the fast path if there is one."""

    def __init__(self, client: asyncio.Transport, *, fast: bool) -> None:
        self.repair = StreamRepair(response_id="a", client_wants_usage=False)
        self.long_way = 0
        self.lost: str | None = None
        self.client = client
        self._lanes = fast
        self.size_lines: dict[int, bytes] = {}

    def response_head(self, status: int, headers: Headers) -> None:
        """Part of ResponseHandler."""
        self.client.write(HEAD)

    def response_data(self, data: bytes) -> None:
        """Part of ResponseHandler."""
        self.long_way += 1
        if owed := self.repair.feed(data):
            self.client.write(b"%x\r\n%b\r\n" % (len(owed), owed))

    def response_flush(self) -> None:
        """Part of ResponseHandler."""

    def request_blocked(self) -> None:
        """Part of ResponseHandler."""

    def request_unblocked(self) -> None:
        """Part of ResponseHandler."""

    def response_splice(self) -> StreamFastPath | None:
        """Part of ResponseHandler."""
        envelope = self.repair.text_envelope
        return (
            StreamFastPath(envelope, self.repair, self.client, self.size_lines)
            if self._lanes and envelope
            else None
        )

    def response_end(self) -> None:
        """Part of ResponseHandler."""
        self.client.write(b"0\r\n\r\n")

    def response_lost(self, reason: str) -> None:
        """Part of ResponseHandler."""
        self.lost = reason

    def on_lost(self, reason: str, answered: bool) -> None:
        """Ignore a broken connection."""
        self.lost = reason


class Body:
    """Collects what a parser finds in a client's bytes."""

    def __init__(self) -> None:
        self.data = b""
        self.whole = False

    def on_body(self, data: bytes) -> None:
        """Handle a parser callback."""
        self.data += data

    def on_message_complete(self) -> None:
        """Handle a parser callback."""
        self.whole = True


@dataclass(frozen=True)
class Engine:
    """The far end of a connection, as far as reads of it go."""

    transport: asyncio.Transport

    def says(self, data: bytes) -> None:
        """Pass one read to the current protocol of the connection."""
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, asyncio.Protocol)
        protocol.data_received(data)


@contextlib.asynccontextmanager
async def asked(*, fast: bool) -> AsyncIterator[tuple[Engine, Passing, socket.socket]]:
    """Return an engine that has a request, the receiver of its response, and the client's end of a socket."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    engine, far = socket.socketpair()
    pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=1)
    with theirs, far:
        client, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        connection = Connection(pool, Address("127.0.0.1", 1, b"", b"127.0.0.1:1"))
        transport, _ = await loop.create_connection(lambda: connection, sock=engine)
        passing = Passing(client, fast=fast)
        connection.send(b"", b"", passing, passing.on_lost)
        try:
            yield Engine(transport), passing, theirs
        finally:
            client.abort()
            connection.abort()
            pool.close()
            await asyncio.sleep(0)


async def received(reads: list[bytes], *, fast: bool) -> tuple[bytes, bool, int, str | None]:
    """Return what the client received for these reads: body, completeness, events, error."""
    async with asked(fast=fast) as (engine, passing, theirs):
        body, got = Body(), bytearray()
        for read in reads:
            engine.says(read)
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                got += theirs.recv(1 << 20)
        parser = httptools.HttpResponseParser(body)
        parser.feed_data(bytes(got))
        return body.data, body.whole, passing.repair.events, passing.lost


texts = st.one_of(
    st.sampled_from(
        [
            b"",
            b"a",
            b" word",
            b"\\n",
            b'\\"',
            b"\\\\",
            "\u4f60".encode(),
            "\u4f60".encode()[:2],
            b"\x9d",
        ]
    ),
    st.text('ab\\"\u00e9', max_size=4).map(str.encode),
    st.just(b'x"},"finish_reason":null}]}\n\n\r\n'),
)
events = st.one_of(
    texts.map(lambda text: EVENT % text), st.sampled_from([OTHER, b": comment\n\n", b"data: {"])
)


@given(
    st.lists(st.tuples(st.lists(events, min_size=1, max_size=2), st.booleans()), max_size=12),
    st.lists(st.integers(0, 2000), max_size=4),
    st.booleans(),
)
def test_a_client_gets_the_same_by_a_lane_as_without(chunks, cuts, upper):
    """Whatever the events are, however they are framed, and wherever the reads cut them."""
    line = b"%X\r\n%b\r\n" if upper else b"%x\r\n%b\r\n"
    first, *rest = [BEGIN, line % (len(EVENT % b"a"), EVENT % b"a")] + [
        line % (len(b"".join(inside)), b"".join(inside)) for inside, _ in chunks
    ]
    reads = [first]
    for chunk, apart in zip(rest, [True, *(alone for _, alone in chunks)], strict=True):
        if apart:
            reads.append(chunk)
        else:
            reads[-1] += chunk
    for cut in cuts:
        at = cut % len(reads)
        place = cut % len(reads[at])
        reads[at : at + 1] = [part for part in (reads[at][:place], reads[at][place:]) if part]
    reads.append(b"0\r\n\r\n")
    assert asyncio.run(received(reads, fast=True)) == asyncio.run(received(reads, fast=False))


async def test_plain_events_take_the_lane():
    """From the second after the opening on, one by one or several in a read, in whichever case sizes are written."""
    async with asked(fast=True) as (engine, passing, _):
        engine.says(BEGIN)
        for line in (b"%x\r\n%b\r\n", b"%X\r\n%b\r\n"):
            chunks = [line % (len(EVENT % text), EVENT % text) for text in (b"one", b"two", b"\\n")]
            for read in (*chunks, chunks[0] + chunks[1]):
                engine.says(read)
        assert (passing.repair.events, passing.long_way) == (11, 2)


async def test_a_size_that_is_not_the_chunks_takes_no_lane():
    """A size that is wrong, or that only Python would read as one, is for the parser to refuse."""
    chunk = b"%x\r\n%b\r\n" % (len(EVENT % b"a"), EVENT % b"a")
    for wrong in (
        b"+" + chunk,
        b"0x" + chunk,
        b"1" + chunk,
        b"f" + chunk[1:],
        b"no chunk" + chunk[2:],
    ):
        async with asked(fast=True) as (engine, passing, _):
            engine.says(BEGIN + chunk)
            engine.says(chunk)
            engine.says(chunk)
            assert (passing.repair.events, passing.long_way) == (4, 2)
            engine.says(wrong)
            assert passing.long_way == 3 or passing.lost


async def test_a_slow_client_gets_all_in_order():
    """What its socket does not take waits in the transport, and what follows waits behind it, room or not."""
    async with asked(fast=True) as (engine, passing, theirs):
        engine.says(BEGIN)
        wanted, body = OPENING, Body()
        parser = httptools.HttpResponseParser(body)
        for number in range(4000):
            event = EVENT % b"%08d" % number
            engine.says(b"%x\r\n%b\r\n" % (len(event), event))
            wanted += event
            if number == 3000:
                assert passing.client.get_write_buffer_size() > 0
                parser.feed_data(theirs.recv(1 << 16))
        engine.says(b"0\r\n\r\n")
        while not body.whole:
            parser.feed_data(await asyncio.get_running_loop().sock_recv(theirs, 1 << 16))
        assert body.data == wanted
        assert passing.long_way == 2


async def test_a_disconnected_client_is_no_error():
    """The transport reports a broken connection to its protocol."""
    async with asked(fast=True) as (engine, passing, theirs):
        engine.says(BEGIN)
        chunk = b"%x\r\n%b\r\n" % (len(EVENT % b"a"), EVENT % b"a")
        engine.says(chunk)
        await asyncio.sleep(0)
        theirs.close()
        for _ in range(3):
            engine.says(chunk)
        assert passing.repair.events == 5


async def test_an_encrypted_client_gets_no_plain_byte():
    """What it is sent goes through its transport, which encrypts."""
    ca = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(ours)
    ca.configure_trust(theirs)
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    (client, _), (reader, writer) = await asyncio.gather(
        loop.connect_accepted_socket(asyncio.Protocol, near, ssl=ours),
        asyncio.open_connection(sock=far, ssl=theirs, server_hostname="localhost"),
    )
    event = EVENT % b"a"
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    head, _, foot = event.partition(b'a"}')
    fast_path = StreamFastPath(
        (head, b'"}' + foot), StreamRepair(response_id="a", client_wants_usage=False), client, {}
    )
    for _ in range(3):
        fast_path.data_received(chunk)
        assert await reader.readexactly(len(chunk)) == chunk
    writer.close()
    client.abort()
