"""Engines' answers read from any framing, cut anywhere."""

from __future__ import annotations

import asyncio
import itertools
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_http.address import Address, parse_url
from cortex_http.connection import Connection
from cortex_http.headers import Headers
from cortex_http.pool import ConnectionPool, OutOfResources


class Wire(asyncio.Transport):
    """The socket's side: remembers what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        """Part of asyncio.Transport."""
        self.written += data

    def close(self) -> None:
        """Part of asyncio.Transport."""
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        """Part of asyncio.Transport."""
        self.reading = False

    def resume_reading(self) -> None:
        """Part of asyncio.Transport."""
        self.reading = True


class Heard:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.ended = 0
        self.lost: tuple[str, bool] | None = None

    def response_head(self, status: int, headers: Headers) -> None:
        """Part of ResponseHandler."""
        assert not self.status
        self.status, self.headers = status, headers

    def response_data(self, data: bytes) -> None:
        """Part of ResponseHandler."""
        assert self.status
        assert not self.ended
        self.body += data

    def response_flush(self) -> None:
        """Part of ResponseHandler."""

    def request_blocked(self) -> None:
        """Part of ResponseHandler."""

    def request_unblocked(self) -> None:
        """Part of ResponseHandler."""

    def response_splice(self) -> None:
        """Part of ResponseHandler."""

    def response_end(self) -> None:
        """Part of ResponseHandler."""
        self.ended += 1

    def response_lost(self, reason: str) -> None:
        """Part of ResponseHandler."""

    def on_lost(self, reason: str, answered: bool) -> None:
        """Ignore a broken connection."""
        self.lost = (reason, answered)


ADDRESS = Address("127.0.0.1", 1, b"", b"127.0.0.1:1")


def opened() -> tuple[ConnectionPool[Address], Connection[Address], Wire, Heard]:
    """Return a connection that has just sent a request."""
    pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=1)
    wire, heard = Wire(), Heard()
    connection = Connection(pool, ADDRESS)
    connection.connection_made(wire)
    connection.send(b"POST / HTTP/1.1\r\n\r\n", b"", heard, heard.on_lost)
    return pool, connection, wire, heard


def deliver(connection: Connection[Address], data: bytes, places: list[int]) -> None:
    """Let the bytes arrive in pieces."""
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    for a, b in itertools.pairwise(edges):
        if a < b:
            connection.data_received(data[a:b])


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """Return the body in chunks, possibly with extensions and trailers."""
    places = draw(st.lists(st.integers(0, len(body)), max_size=6))
    edges = [0, *sorted(places), len(body)]
    out = b""
    for a, b in itertools.pairwise(edges):
        if a < b:
            extension = draw(st.sampled_from([b"", b";x=y", b';name="v"']))
            out += b"%x%b\r\n%b\r\n" % (b - a, extension, body[a:b])
    return out + b"0\r\n" + draw(st.sampled_from([b"", b"x-trailer: 1\r\n"])) + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, str]:
    """(body, bytes on the wire, framing)."""
    body = draw(st.binary(max_size=300))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    if framing == "length":
        head, framed = b"content-length: %d\r\n" % len(body), body
    elif framing == "chunked":
        head, framed = b"Transfer-Encoding: chunked\r\n", draw(chunked(body))
    else:
        head, framed = b"connection: close\r\n", body
    return body, interim + b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + framed, framing


async def heard_after(wire: bytes, framing: str, places: list[int]) -> tuple[Heard, Wire]:
    """Return what the receiver made of a response."""
    pool, connection, transport, heard = opened()
    deliver(connection, wire, places)
    if framing == "close":
        assert not heard.ended
        connection.connection_lost(None)
    pool.close()
    return heard, transport


@given(answers(), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_framing_cut_anywhere_gives_the_body(answer, places):
    """Lengths, chunks with extensions and trailers, and the end of the connection all frame the same body."""
    body, wire, framing = answer
    heard, _ = asyncio.run(heard_after(wire, framing, places))
    assert (heard.status, heard.body, heard.ended, heard.lost) == (200, body, 1, None)


hostile = st.lists(
    st.sampled_from([b"a", b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\r", b"x" * 4096]),
    min_size=1,
).map(b"".join)


@given(st.lists(st.tuples(hostile, st.booleans(), st.integers(0, 9)), min_size=1, max_size=8))
def test_chunks_that_are_read_one_by_one_or_not_give_the_body(chunks):
    """A read may be one whole chunk, a part of one, or the end of one with the next's beginning."""
    wire, places = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", []
    for data, alone, cut in chunks:
        wire += b"%x\r\n%b\r\n" % (len(data), data)
        places += [len(wire)] if alone else [len(wire) - cut]
    heard, _ = asyncio.run(heard_after(wire + b"0\r\n\r\n", "chunked", places))
    assert (heard.body, heard.ended) == (b"".join(data for data, _, _ in chunks), 1)


async def lost_after(wire: bytes, length: int) -> Heard:
    """Return what the receiver made of a response that ends early."""
    pool, connection, _, heard = opened()
    deliver(connection, wire[:length], [])
    connection.connection_lost(None)
    pool.close()
    return heard


@given(answers(), st.integers(0, 10_000))
def test_an_interrupted_response_is_never_complete(answer, place):
    """A framed response that ends early is incomplete at any offset, and reports whether any byte arrived."""
    _, wire, framing = answer
    if framing == "close":
        return  # there the end of the connection is the end of the answer
    length = place % len(wire)
    heard = asyncio.run(lost_after(wire, length))
    assert not heard.ended
    assert heard.lost is not None
    assert heard.lost[1] == (length > 0)


@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(0, 1000), max_size=5))
def test_any_bytes_are_a_response_or_a_lost_connection(garbage, places):
    """Whatever an engine sends."""

    async def run() -> None:
        pool, connection, _, heard = opened()
        deliver(connection, garbage, places)
        connection.connection_lost(None)
        assert heard.ended or heard.lost
        pool.close()

    asyncio.run(run())


async def test_unexpected_bytes_close_an_idle_connection():
    """What comes before the next request must not become its answer."""
    pool, connection, wire, heard = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert heard.ended
    assert pool.take_idle(ADDRESS) is connection
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    assert wire.closed
    pool.close()


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix"),
    [
        ("http://h:1", "h", 1, b""),
        ("http://h/engines/i-1/", "h", 80, b"/engines/i-1"),
        ("https://api.example.org/v", "api.example.org", 443, b"/v"),
        ("http://[::1]:8", "::1", 8, b""),
    ],
)
def test_an_engines_url_is_taken_apart(url, host, port, prefix):
    """Host, port and the path before /v1."""
    endpoint = parse_url(url)
    assert (endpoint.host, endpoint.port, endpoint.prefix) == (host, port, prefix)


@pytest.mark.parametrize("url", ["h:1", "ftp://h", "http://", ""])
def test_what_is_no_url_is_refused(url):
    """With words instead of a traceback later."""
    with pytest.raises(ValueError, match="not a URL"):
        parse_url(url)


def test_a_unix_socket_is_an_endpoint_too():
    """The path is written in the place of the host, slashes escaped."""
    assert parse_url("http+unix://%2Frun%2Fengine.sock/x").uds == "/run/engine.sock"


async def test_a_connection_paused_by_its_last_piece_reads_the_next_answer():
    """A client that reads the end of its response slowly does not delay other responses."""
    pool, connection, transport, heard = opened()
    heard.response_data = lambda _: connection.pause()  # type: ignore[method-assign]
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
    assert heard.ended == 1
    assert pool.take_idle(ADDRESS) is connection
    assert transport.reading


@pytest.mark.parametrize(
    ("beginning", "endless"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 100),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=", b"x" * 4096),
    ],
    ids=["header line", "headers", "interim responses", "trailers", "chunk extension"],
)
async def test_endless_headers_are_refused(beginning: bytes, endless: bytes):
    """A response that never gets to its body ends with an error before it fills the memory."""
    _, connection, wire, heard = opened()
    connection.data_received(beginning + endless)
    for _ in range(200_000 // len(endless)):
        if wire.closed:
            break
        connection.data_received(endless)
    assert wire.closed
    assert heard.lost is not None
    assert heard.lost[0].endswith(("KiB of headers", "overflow"))


async def test_trailers_are_no_headers():
    """What follows the last chunk does not become part of the next response."""
    pool, connection, _, heard = opened()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    connection.data_received(head + b"2\r\nhi\r\n0\r\nx-evil: 1\r\n\r\n")
    assert (heard.body, heard.ended) == (b"hi", 1)
    assert heard.headers == [(b"transfer-encoding", b"chunked")]
    pool.close()


async def test_a_switch_to_another_protocol_is_an_error():
    """101 was not asked for."""
    _, connection, wire, heard = opened()
    connection.data_received(b"HTTP/1.1 101 No\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nzzz")
    assert wire.closed
    assert heard.lost is not None


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@pytest.mark.parametrize("call", ["response_head", "response_data", "response_end"])
@pytest.mark.parametrize("again", [False, True], ids=["parsed", "same head as before"])
async def test_a_handler_that_fails_ends_its_request(call: str, again: bool):
    """An exception in the handling of a response is an error of the request, which would otherwise wait forever."""
    pool, connection, _, heard = opened()
    if again:
        connection.data_received(WHOLE)
        connection.send(b"POST / HTTP/1.1\r\n\r\n", b"", Heard(), heard.on_lost)
        assert pool.take_idle(ADDRESS) is connection
    failing = Heard()

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    setattr(failing, call, fail)
    connection.send(b"POST / HTTP/1.1\r\n\r\n", b"", failing, failing.on_lost)
    connection.data_received(WHOLE)
    assert failing.lost == ("the response could not be handled: no memory", True)
    pool.close()


async def test_a_handler_that_fails_at_the_end_of_the_connection_ends_its_request():
    """The same for a body that the end of the connection delimits."""
    _, connection, _, heard = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhi")

    def fail() -> None:
        raise RuntimeError("no memory")

    heard.response_end = fail  # type: ignore[method-assign]
    connection.connection_lost(None)
    assert heard.lost == ("the response could not be handled: no memory", True)


async def test_a_server_that_is_gone_is_gone_for_all_its_connections():
    """Requests on it end at once and are not sent again; idle connections are not used for others."""
    pool, active, active_wire, heard = opened()
    idle, idle_wire = Connection(pool, ADDRESS), Wire()
    idle.connection_made(idle_wire)
    pool.connection_idle(idle)
    other = Connection(pool, Address("127.0.0.1", 2, b"", b"127.0.0.1:2"))
    other_wire = Wire()
    other.connection_made(other_wire)
    pool.drop([ADDRESS], "the node is gone")
    assert heard.lost == ("the node is gone", True)
    assert (active_wire.closed, idle_wire.closed, other_wire.closed) == (True, True, False)
    assert pool.take_idle(ADDRESS) is None
    for connection in (active, idle):
        connection.connection_lost(None)
    assert pool.live == 1


async def test_idle_connections_are_bounded_after_a_burst():
    """Of 1,500 connections that become idle at once, only some are kept, however long they may be."""
    pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=1)
    wires = []
    for _ in range(1500):
        connection, wire = Connection(pool, ADDRESS), Wire()
        connection.connection_made(wire)
        pool.connection_idle(connection)
        wires.append(wire)
    assert sum(not wire.closed for wire in wires) == 256
    pool.close()


async def test_missing_descriptors_are_no_fault_of_the_server():
    """A connection that this host can't open says nothing about the server."""
    pool: ConnectionPool[Address] = ConnectionPool(connect_timeout_s=5)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        with pytest.raises(OutOfResources):
            await pool.connect(ADDRESS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
