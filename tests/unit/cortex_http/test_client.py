"""Engines' answers read from any framing, cut anywhere."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_http.client import Address, ConnectionPool, parse_url
from cortex_http.connection import Connection
from cortex_http.headers import Headers


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
