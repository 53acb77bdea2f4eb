"""Heads that come again: what is taken without a parser is what a parser would have found."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_http.head_cache import CachedHead, CachedHeadWithId

NAME = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-", min_size=1, max_size=12)
VALUE = st.text("abcXYZ 0123456789:/*;=.,-", max_size=20)
LINES = st.lists(st.tuples(NAME, VALUE), max_size=6)
BODY = st.binary(max_size=300) | st.just(b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc")


class Found:
    """What a parser finds."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.bodies: list[bytes] = []
        self._body = b""
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Handle a parser callback."""
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        """Handle a parser callback."""
        self._body += data

    def on_message_complete(self) -> None:
        """Handle a parser callback."""
        self.bodies.append(self._body)
        self._body = b""


def message(before: list[tuple[str, str]], after: list[tuple[str, str]], body: bytes) -> bytes:
    """Return a request with the length of its body between other headers."""
    lines = [f"{n}: {v}" for n, v in before]
    lines += [f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in after)]
    return "\r\n".join(["POST /v1/x HTTP/1.1", *lines, "", ""]).encode() + body


@given(LINES, LINES, BODY, BODY)
def test_a_known_head_gives_the_body_that_a_parser_finds(before, after, first, second):
    """Whatever stands around the length, and however long the next body is."""
    repeat = CachedHead.from_message(message(before, after, first))
    again = message(before, after, second)
    if repeat is not None:
        found = Found(again)
        assert found.bodies == [repeat.body_of(again)] == [second]
        others = [h for h in found.headers if h[0] != b"content-length"]
        assert others == [
            h for h in Found(message(before, after, first)).headers if h[0] != b"content-length"
        ]


@given(LINES, BODY, st.data())
def test_any_other_bytes_are_left_to_the_parser(before, body, data):
    """A changed, missing or further byte, a second request behind the first: none is taken for the known head."""
    whole = message(before, [], body)
    repeat = CachedHead.from_message(whole)
    if repeat is None:
        return
    assert repeat.body_of(whole + b"x") is None
    assert repeat.body_of(whole + whole) is None
    assert repeat.body_of(whole[:-1]) is None
    at = data.draw(st.integers(0, len(whole) - len(body) - 1))
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    taken = repeat.body_of(changed)
    assert taken is None or int(Found(changed).headers[-1][1]) == len(taken)


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST / HTTP/1.1\r\ncontent-length: 3 \r\n\r\nabc",
        b"POST / HTTP/1.1\r\ncontent-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nx: " + b"a" * 5000 + b"\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
def test_heads_that_say_more_than_a_length_are_not_remembered(head):
    """No length, several, chunks, a number that is none, a body that is not all there, a very long head."""
    assert CachedHead.from_message(head) is None


def with_id(value: bytes, body: bytes, length: int | None = None) -> bytes:
    """Return a message whose last header is a request id."""
    size = len(body) if length is None else length
    return b"POST / HTTP/1.1\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
        size,
        value,
        body,
    )


@given(st.text("ab1-.", min_size=1, max_size=130).map(str.encode), st.binary(max_size=300))
def test_a_head_with_another_id_is_recognized(value, body):
    """Body and id come out as they went in, for ids up to the limit."""
    cached = CachedHeadWithId.from_message(with_id(b"req-1", b"{}"), b"x-request-id")
    assert cached is not None
    assert cached.split(with_id(value, body)) == ((body, value) if len(value) <= 128 else None)


@pytest.mark.parametrize(
    "message",
    [
        with_id(b"a\r\nx-other: 1", b"{}"),
        with_id(b"a\nx: 1", b"{}"),
        with_id(b"a b", b"{}"),
        with_id(b"", b"{}"),
        with_id(b"a", b"{}", 3),
        with_id(b"a", b"{}", 1),
        with_id(b"a", b"{}")[:-1],
        with_id(b"a", b"{}") + with_id(b"a", b"{}"),
        with_id(b"a", b"{}").replace(b"POST / ", b"POST /x "),
    ],
)
def test_other_heads_and_lengths_are_left_to_the_parser(message):
    """Further headers, other characters, other lengths and more than one message are not recognized."""
    cached = CachedHeadWithId.from_message(with_id(b"req-1", b"{}"), b"x-request-id")
    assert cached is not None
    assert cached.split(message) is None
