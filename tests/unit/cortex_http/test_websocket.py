"""The frames of the WebSocket protocol, against the implementation of the websockets package."""

from __future__ import annotations

import contextlib

import pytest
from dialects_kit import split_bytes
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.streams import StreamReader
from websockets.utils import accept_key as their_accept_key

from cortex_http.websocket import (
    CloseCode,
    FrameParser,
    Opcode,
    WebSocketError,
    WebSocketMessage,
    accept_key,
    write_close,
    write_frame,
)


def _frame(opcode: int, data: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(TheirOpcode(opcode), data, fin).serialize(mask=mask)


def _read(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parser = Frame.parse(reader.read_exact, mask=False)
    try:
        while True:
            next(parser)
    except StopIteration as stop:
        frame: Frame = stop.value
        return frame


_DATA = st.binary(max_size=300) | st.integers(0, 70_000).map(bytes)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 9, 10]), st.binary(max_size=125)), max_size=5),
    st.lists(_DATA, min_size=1, max_size=4),
    st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_messages_are_read_however_they_are_cut(
    before: list[tuple[int, bytes]], fragments: list[bytes], cuts: list[int]
) -> None:
    """Whole messages, control frames, and a message in fragments with a ping between them."""
    stream = b"".join(_frame(opcode, data) for opcode, data in before)
    last = len(fragments) - 1
    for number, fragment in enumerate(fragments):
        stream += _frame(0 if number else 1, fragment, fin=number == last) + _frame(9, b"p")
    parser = FrameParser(1 << 20)
    found = [message for piece in split_bytes(stream, cuts) for message in parser.feed(piece)]
    expected = [WebSocketMessage(Opcode(opcode), data) for opcode, data in before]
    pings = [WebSocketMessage(Opcode.PING, b"p")] * last
    text = WebSocketMessage(Opcode.TEXT, b"".join(fragments))
    assert found == [*expected, *pings, text, WebSocketMessage(Opcode.PING, b"p")]


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_are_messages_or_an_error(pieces: list[bytes]) -> None:
    """No other exception escapes, and nothing larger than a message is kept."""
    parser = FrameParser(100)
    with contextlib.suppress(WebSocketError):
        for piece in pieces:
            assert all(len(message.data) <= 125 for message in parser.feed(piece))


@given(_DATA)
def test_frames_are_read_by_others(data: bytes) -> None:
    """Of any size."""
    frame = _read(write_frame(Opcode.TEXT, data))
    assert (frame.opcode, frame.data, frame.fin) == (TheirOpcode.TEXT, data, True)


def test_close_has_a_code_and_a_short_reason() -> None:
    """Control frames have at most 125 bytes; a character is not cut."""
    frame = _read(write_close(CloseCode.TOO_BIG, "é" * 100))
    assert frame.data[:2] == (1009).to_bytes(2, "big")
    assert len(frame.data) <= 125
    assert set(frame.data[2:].decode()) == {"é"}


def test_accept_key_is_that_of_the_rfc() -> None:
    """Clients compare it."""
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    assert accept_key(key.encode()).decode() == their_accept_key(key)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (_frame(1, b"x", mask=False), CloseCode.PROTOCOL_ERROR),
        (bytes([0xC1, 0x80, 0, 0, 0, 0]), CloseCode.PROTOCOL_ERROR),
        (bytes([0x83, 0x80, 0, 0, 0, 0]), CloseCode.PROTOCOL_ERROR),
        (_frame(0, b"x"), CloseCode.PROTOCOL_ERROR),
        (_frame(1, b"x", fin=False) + _frame(1, b"y"), CloseCode.PROTOCOL_ERROR),
        (bytes([0x09, 0x80, 0, 0, 0, 0]), CloseCode.PROTOCOL_ERROR),
        (bytes([0x89, 0xFE, 0, 126, 0, 0, 0, 0]), CloseCode.PROTOCOL_ERROR),
        (bytes([0x81, 0xFF, *(1 << 40).to_bytes(8, "big"), 0, 0, 0, 0]), CloseCode.TOO_BIG),
        (_frame(1, bytes(60), fin=False) + _frame(0, bytes(60)), CloseCode.TOO_BIG),
    ],
    ids=[
        "without mask",
        "reserved bit",
        "unknown opcode",
        "continuation of nothing",
        "message in a message",
        "fragmented control frame",
        "long control frame",
        "large message",
        "large fragmented message",
    ],
)
def test_invalid_frames_are_rejected(data: bytes, code: CloseCode) -> None:
    """Before their payload is read."""
    with pytest.raises(WebSocketError) as caught:
        FrameParser(100).feed(data)
    assert caught.value.code is code
