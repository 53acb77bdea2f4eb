"""The SSE parser and writer."""

from __future__ import annotations

import pytest
from dialects_kit import split_bytes
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.sse import (
    EventBuffer,
    EventTooLong,
    SseParser,
    split_events,
    write_data,
    write_event,
)


def _parse(data: bytes, places: tuple[int, ...] = ()) -> list[tuple[str, bytes]]:
    parser = SseParser()
    found = [event for piece in split_bytes(data, places) for event in parser.feed(piece)]
    return [(event.name, event.data) for event in found + parser.close()]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [("", b"a"), ("", b"b"), ("", b"c")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", b"a"), ("", b"b")]),
        (b"data: a\nevent: x\n\n", [("x", b"a")]),
        (b": hello\n\ndata: a\n\n", [("", b"a")]),
        (b": hello\ndata: a\nid: 7\nretry: 9\n\n", [("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"\n\n\n\ndata: a\n\n\n\n", [("", b"a")]),
        (b"event: x\n\n", []),
        (b"data\n\n", [("", b"")]),
        (b"error: {}\n\n", [("error", b"{}")]),
        (b"data: a\n", [("", b"a")]),
        (b"data: a", [("", b"a")]),
    ],
)
def test_events_are_read_as_the_standard_says(
    data: bytes, expected: list[tuple[str, bytes]]
) -> None:
    """Line ends, spaces, comments, names, a BOM, several data lines and a cut end are read right."""
    assert _parse(data) == expected
    assert _parse(data, tuple(range(len(data)))) == expected


_LINES = st.sampled_from(
    [
        b"data: one",
        b"data:two",
        b"event: name",
        b": comment",
        b"",
        b"data: \xc3\xa9",
        b"id: 1",
        b"data",
    ]
)


@given(
    st.lists(_LINES, max_size=30),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 10_000), max_size=30),
    st.booleans(),
)
def test_any_split_gives_the_same_events(
    lines: list[bytes], ending: bytes, places: list[int], bom: bool
) -> None:
    """However a stream is cut into chunks, and whatever its line ends, the events are the same."""
    plain = b"".join(line + b"\n" for line in lines)
    data = (b"\xef\xbb\xbf" if bom else b"") + b"".join(line + ending for line in lines)
    assert _parse(data, tuple(places)) == _parse(plain)


def test_a_line_may_be_of_any_length() -> None:
    """An event of a megabyte that comes in small pieces is one event."""
    data = write_data(b"x" * 1_000_000)
    assert _parse(data, tuple(range(0, len(data), 1000))) == [("", b"x" * 1_000_000)]


@given(
    st.sampled_from(["", "message_stop", "error"]),
    st.binary().filter(lambda b: not {10, 13} & {*b}),
)
def test_what_is_written_is_read_back(name: str, data: bytes) -> None:
    """The parser reads what the writer writes."""
    written = write_event(name, data) if name else write_data(data)
    assert _parse(written) == [(name, data)]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_a_long_event_in_small_pieces_is_searched_once(ending: bytes) -> None:
    """Work grows with the length of an event, not with its square: 16 MiB in reads of 64 bytes."""
    pieces = [b"data: ", *[b"x" * 64] * (1 << 18), ending * 2]
    parser = SseParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert [len(event.data) for event in events] == [1 << 24]


@pytest.mark.parametrize("ending", [b"", b"\r\n"])
def test_an_endless_event_is_refused(ending: bytes) -> None:
    """Neither a line without an end nor lines without a blank one fill the memory."""
    parser = SseParser(max_bytes=1 << 20)
    piece = b"data: " + b"x" * 1000 + ending
    for _ in range(1000):
        assert not parser.feed(piece)
    with pytest.raises(EventTooLong, match="1 MiB"):
        parser.feed(piece * 100)


def test_each_event_has_its_own_id() -> None:
    """A client that stops between two events of one read continues behind the first."""
    events = SseParser().feed(b"id: 7\ndata: a\n\ndata: b\n\nid: 9\ndata: c\n\n")
    assert [event.id for event in events] == ["7", "", "9"]


@given(st.lists(_LINES, max_size=20), st.data())
def test_split_events_are_the_stream(lines: list[bytes], data: st.DataObject) -> None:
    """With any mixture of line ends, the parts are the whole, and each has the same events alone."""
    endings = st.sampled_from([b"\n", b"\r\n", b"\r"])
    stream = b"".join(line + data.draw(endings) for line in lines)
    buffer = EventBuffer()
    complete = buffer.complete(stream)
    assert complete + buffer.tail == stream
    parts = split_events(complete)
    assert b"".join(parts) == complete
    assert [event for part in parts for event in _parse(part)] == _parse(complete)
