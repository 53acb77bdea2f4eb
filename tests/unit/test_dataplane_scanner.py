"""What the scanner reads from a stream that it only watches."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.engine import CHUNK, DONE, LAST, STREAM

from cortex_common.errors import UpstreamFailed
from cortex_server.dataplane.scanner import LateAnswer, StreamAnswer, WholeAnswer


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_any_cutting_of_a_stream_reads_the_same(places):
    """Bytes pass unchanged; events and usage come out the same however the stream is cut."""
    answer = StreamAnswer()
    passed = b"".join(answer.feed(piece) for piece in cut(STREAM, places))
    assert passed + answer.end() == STREAM
    assert (answer.events, answer.tokens_in, answer.tokens_out) == (6, 7, 3)
    assert answer.error is None


@given(st.integers(0, len(STREAM) - len(DONE)))
def test_a_stream_that_stops_anywhere_before_done_ends_in_an_error_event(length):
    """Wherever an engine stops, what the client got parses up to an error event, and never ends with [DONE]."""
    answer = StreamAnswer()
    got = answer.feed(STREAM[:length]) + answer.end()
    events = [e for e in got.split(b"\n\n") if e]
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["src"] == "cortex"
    assert answer.error == "upstream_failed"


def test_usage_in_the_finish_chunk_is_read():
    """mistral.rs sends usage with the finish reason instead of in a chunk of its own."""
    answer = StreamAnswer()
    answer.feed(
        LAST.replace(b'"}]}', b'"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}') + DONE
    )
    answer.end()
    assert (answer.tokens_in, answer.tokens_out) == (5, 2)


def test_an_engines_own_error_event_is_enough():
    """A stream that already told its error gets no second one from us."""
    answer = StreamAnswer()
    answer.feed(CHUNK % b"a" + b'data: {"error":{"message":"boom"}}\n\n')
    assert answer.end() == b""
    assert answer.error == "engine_stream"


def test_the_word_error_in_a_text_is_no_error():
    """Only an error object counts."""
    answer = StreamAnswer()
    answer.feed(CHUNK % rb"\"error\": no" + LAST + DONE)
    assert answer.end() == b""
    assert answer.error is None


def test_long_events_are_not_lost():
    """A single event beyond the kept tail passes, and the end is still read."""
    answer = StreamAnswer()
    long = CHUNK % (b"x" * 200_000)
    assert answer.feed(long) == long
    answer.feed(STREAM)
    assert answer.end() == b""
    assert answer.tokens_out == 3


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_usage_of_a_whole_answer_is_read_up_to_a_size(size):
    """A small answer is counted; one too large to keep passes uncounted."""
    body = json.dumps(
        {"x": "y" * size, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    ).encode()
    answer = WholeAnswer(200)
    assert b"".join(answer.feed(p) for p in cut(body, [1, 5, 1_500_000])) == body
    assert answer.end() == b""
    assert answer.tokens_out == (2 if size == 10 else 0)


def test_half_a_whole_answer_can_only_be_cut():
    """There is no way to say in JSON that half a document is wrong."""
    assert WholeAnswer(200).broken(UpstreamFailed("gone")) is None


def test_a_plain_answer_after_a_promised_stream_becomes_an_event():
    """The engine's status and words are in it."""
    answer = LateAnswer(400)
    assert answer.feed(b'{"error":"bad"}') == b""
    event = json.loads(answer.end().removeprefix(b"data: "))
    assert event["error"]["upstream_status"] == 400
    assert "bad" in event["error"]["message"]
