"""What the first bytes of an answer show."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.engine import CHUNK, COMPLETION, DONE, STREAM

from cortex_common.errors import Busy, CortexError, PromptTooLong, UpstreamFailed
from cortex_server.proxy.response.first_bytes import FirstBytes, Format, is_error

JSON, EVENTS = b"application/json", b"text/event-stream"
COMMENTS = b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\r\n\r\n"


def identify(
    pieces: list[bytes], content_type: bytes = JSON, *, generates: bool = True
) -> tuple[Format | None, bytes]:
    """Return the format, and the bytes that were handed on."""
    first = FirstBytes(content_type, generates=generates)
    passed = b""
    for piece in pieces:
        passed += piece if first.format is not None else first.feed(piece)
    if first.format is None:
        passed += first.end()
    return first.format, passed


@pytest.mark.parametrize("label", [JSON, EVENTS, b"text/plain", b""])
@pytest.mark.parametrize("before", [b"", b"\n\n", b"\xef\xbb\xbf", COMMENTS, b" \r\n" * 50])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (STREAM, Format.EVENTS),
        (b"event: message\n" + STREAM, Format.EVENTS),
        (b"id: 7\n" + STREAM, Format.EVENTS),
        (STREAM.replace(b"\n", b"\r\n"), Format.EVENTS),
        (COMPLETION, Format.JSON),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=4))
def test_a_body_is_what_its_bytes_say_however_it_is_labelled_and_cut(
    label: bytes, before: bytes, body: bytes, expected: Format, cuts: list[int]
) -> None:
    """Comments and blank lines may precede; all significant bytes are handed on."""
    whole = before + body
    edges = sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    found, passed = identify(pieces, label)
    assert found is expected
    assert passed == (whole if expected is Format.EVENTS else body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (COMMENTS, "empty"),
        (b"<!doctype html><h1>Sign in</h1>", "web page"),
        (b"\n <html>", "web page"),
        (DONE, "without an answer"),
        (b": hi\n\n" + DONE, "without an answer"),
        (b"Internal Server Error", "neither JSON nor events"),
    ],
)
def test_what_is_no_answer_is_rejected(body: bytes, words: str) -> None:
    """Each with its reason."""
    with pytest.raises(UpstreamFailed, match=words):
        identify([body])


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (b'data: {"error":{"message":"x","type":"rate_limit_error"}}\n\n', Busy),
        (b'data: {"id":"1","error":{"message":"x","code":429},"choices":[]}\n\n', Busy),
        (b'event: error\ndata: {"message":"x"}\n\n', UpstreamFailed),
        (b'error: {"message":"x"}\n\n', UpstreamFailed),
        (b'data: {"object":"error","message":"x","code":500}\n\n', UpstreamFailed),
        (
            b'data: {"error":{"message":"prompt is too long","type":"server_error"}}\r\n\r\n',
            PromptTooLong,
        ),
    ],
)
def test_an_error_as_the_first_event_is_an_error(event: bytes, error: type[CortexError]) -> None:
    """It is known before the client has got anything, so another instance can be tried."""
    for before in (b"", b": wait\n\n"):
        with pytest.raises(error):
            identify([before + event + DONE], EVENTS)


@pytest.mark.parametrize(
    "text", ["error", '"error":{"message":"x"}', "[DONE]", 'data: {"error":1}', "error: x"]
)
def test_text_about_errors_is_no_error(text: str) -> None:
    """A model can write about them."""
    chunk = json.dumps({"error": None, "choices": [{"delta": {"content": text}}]})
    assert identify([b"data: %b\n\n" % chunk.encode()])[0] is Format.EVENTS
    assert not is_error(chunk.encode())


@pytest.mark.parametrize(
    ("body", "label", "expected"),
    [
        (b'{"data":[]}', JSON, Format.OTHER),
        (b'{"error":{"message":"x"}}', JSON, Format.ERROR),
        (b'\n{ "error" : "x"}', JSON, Format.ERROR),
        (b'{"error":null,"data":[]}', JSON, Format.OTHER),
        (b"ID3\x00", b"audio/mpeg", Format.OTHER),
        (b"<srt>", b"text/plain", Format.OTHER),
        (b"1\n00:00 --> 00:01\nerror\n", b"text/plain", Format.OTHER),
    ],
)
def test_other_routes_answer_with_anything_but_errors(
    body: bytes, label: bytes, expected: Format
) -> None:
    """Audio, embeddings and subtitles pass."""
    for pieces in ([body], [body[:1], body[1:]]):
        found, passed = identify(pieces, label, generates=False)
        assert (found, passed) == (expected, body)


@pytest.mark.parametrize(("body", "label"), [(b"", JSON), (b"<html>", b"text/html; charset=utf-8")])
def test_other_routes_reject_pages_and_nothing(body: bytes, label: bytes) -> None:
    """Neither is an answer of a model."""
    with pytest.raises(UpstreamFailed):
        identify([body], label, generates=False)


def test_comments_without_an_end_are_bounded() -> None:
    """Comments are forgotten after a while, and one without an end is rejected."""
    first = FirstBytes(EVENTS, generates=True)
    for _ in range(40_000):
        assert first.feed(b": wait\n\n") == b""
    assert len(first.feed(CHUNK % b"a")) < 70_000
    endless = FirstBytes(EVENTS, generates=True)
    assert endless.feed(b":" * 60_000) == b""
    with pytest.raises(UpstreamFailed, match="without an end"):
        endless.feed(b":" * 60_000)
