"""Translation of chat streams to Messages and Responses streams."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from dialects_kit import (
    ParsedStream,
    call_delta,
    chunk,
    parse_events,
    parse_messages_stream,
    parse_responses_stream,
    responses_stream,
    run_translator,
    sse_stream,
    usage,
    usage_chunk,
)
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import PromptTooLong, Unavailable, UpstreamFailed, UpstreamTimeout
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.chat import ToolName


def _messages(**more: Any) -> MessagesStreamWriter:
    return MessagesStreamWriter(message_id="msg_1", model="claude-x", **more)


_responses = responses_stream


def _translate(
    data: bytes, cuts: tuple[int, ...] = (), **more: Any
) -> tuple[ParsedStream, ParsedStream]:
    messages, responses = _messages(**more), _responses(**more)
    return (
        parse_messages_stream(run_translator(messages.feed, messages.end, data, cuts)),
        parse_responses_stream(run_translator(responses.feed, responses.end, data, cuts)),
    )


_STOP = chunk(finish="stop")
_CALLS = chunk(finish="tool_calls")
_A = ("tool_use", '{"x":1}', ("a", "f"))
_B = ("tool_use", '{"y":2}', ("b", "g"))

# (name, stream, blocks, Anthropic's stop reason, the response's status)
_TABLE = [
    (
        "text",
        sse_stream(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}),
            _STOP,
        ),
        [("text", "Hello", ())],
        "end_turn",
        "completed",
    ),
    (
        "empty and null deltas make no block",
        sse_stream(
            chunk(), chunk({"content": None, "tool_calls": None}), chunk({"content": "a"}), _STOP
        ),
        [("text", "a", ())],
        "end_turn",
        "completed",
    ),
    (
        "content in the first and in the finish chunk",
        sse_stream(
            chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"}, finish="stop")
        ),
        [("text", "ab", ())],
        "end_turn",
        "completed",
    ),
    (
        "reasoning, text and calls in one delta",
        sse_stream(
            chunk(
                {"content": "t", "reasoning_content": "r"}
                | call_delta(0, "{}", call_id="a", name="f")
            ),
            _CALLS,
        ),
        [("thinking", "r", ()), ("text", "t", ()), ("tool_use", "{}", ("a", "f"))],
        "tool_use",
        "completed",
    ),
    (
        "a type that recurs is a new block",
        sse_stream(
            chunk({"reasoning": "r"}), chunk({"content": "t"}), chunk({"reasoning": "s"}), _STOP
        ),
        [("thinking", "r", ()), ("text", "t", ()), ("thinking", "s", ())],
        "end_turn",
        "completed",
    ),
    (
        "both names of reasoning in one delta",
        sse_stream(chunk({"reasoning": "r", "reasoning_content": "r"}), _STOP),
        [("thinking", "r", ())],
        "end_turn",
        "completed",
    ),
    (
        "a call in fragments, and stop after it",
        sse_stream(
            chunk(call_delta(0, "", call_id="a", name="f")),
            chunk(call_delta(0, '{"x"')),
            chunk(call_delta(0, ":1}")),
            _STOP,
        ),
        [_A],
        "tool_use",
        "completed",
    ),
    (
        "id and name in every fragment",
        sse_stream(
            chunk(call_delta(0, '{"x"', call_id="a", name="f")),
            chunk(call_delta(0, ":1}", call_id="a", name="f")),
            _CALLS,
        ),
        [_A],
        "tool_use",
        "completed",
    ),
    (
        "two complete calls in one chunk",
        sse_stream(
            chunk(
                {
                    "tool_calls": call_delta(0, '{"x":1}', call_id="a", name="f")["tool_calls"]
                    + call_delta(1, '{"y":2}', call_id="b", name="g")["tool_calls"]
                },
                finish="tool_calls",
            )
        ),
        [_A, _B],
        "tool_use",
        "completed",
    ),
    (
        "two calls both at index 0",
        sse_stream(
            chunk(call_delta(0, '{"x":1}', call_id="a", name="f")),
            chunk(call_delta(0, '{"y":2}', call_id="b", name="g")),
            _CALLS,
        ),
        [_A, _B],
        "tool_use",
        "completed",
    ),
    (
        "two calls without an index",
        sse_stream(
            chunk(call_delta(None, '{"x"', call_id="a", name="f")),
            chunk(call_delta(None, ":1}")),
            chunk(call_delta(None, '{"y":2}', call_id="b", name="g")),
            _CALLS,
        ),
        [_A, _B],
        "tool_use",
        "completed",
    ),
    (
        "interleaved calls",
        sse_stream(
            chunk(call_delta(0, '{"x"', call_id="a", name="f")),
            chunk(call_delta(1, '{"y"', call_id="b", name="g")),
            chunk(call_delta(0, ":1}")),
            chunk(call_delta(1, ":2}")),
            _CALLS,
        ),
        [_A, _B],
        "tool_use",
        "completed",
    ),
    (
        "arguments as an object",
        sse_stream(chunk(call_delta(0, {"x": 1}, call_id="a", name="f")), _CALLS),
        [_A],
        "tool_use",
        "completed",
    ),
    (
        "a name in a later fragment",
        sse_stream(
            chunk(call_delta(0, "", call_id="a")), chunk(call_delta(0, '{"x":1}', name="f")), _CALLS
        ),
        [_A],
        "tool_use",
        "completed",
    ),
    (
        "no arguments",
        sse_stream(chunk(call_delta(0, None, call_id="a", name="f")), _CALLS),
        [("tool_use", "", ("a", "f"))],
        "tool_use",
        "completed",
    ),
    (
        "truncated arguments",
        sse_stream(chunk(call_delta(0, '{"x', call_id="a", name="f")), chunk(finish="length")),
        [("tool_use", '{"x', ("a", "f"))],
        "max_tokens",
        "incomplete",
    ),
    (
        "space between calls is dropped, text becomes a block in its place",
        sse_stream(
            chunk(call_delta(0, '{"x":1}', call_id="a", name="f")),
            chunk({"content": "\n"}),
            chunk({"content": "then"}),
            chunk(call_delta(1, '{"y":2}', call_id="b", name="g")),
            _CALLS,
        ),
        [_A, ("text", "then", ()), _B],
        "tool_use",
        "completed",
    ),
    (
        "text inside a call is deferred to its end",
        sse_stream(
            chunk(call_delta(0, '{"x"', call_id="a", name="f")),
            chunk({"content": "then"}),
            chunk(call_delta(0, ":1}")),
            _CALLS,
        ),
        [_A, ("text", "then", ())],
        "tool_use",
        "completed",
    ),
    (
        "length",
        sse_stream(chunk({"content": "a"}), chunk(finish="length")),
        [("text", "a", ())],
        "max_tokens",
        "incomplete",
    ),
    (
        "content filter",
        sse_stream(chunk({"content": "a"}), chunk(finish="content_filter")),
        [("text", "a", ())],
        "refusal",
        "incomplete",
    ),
    (
        "a refusal",
        sse_stream(chunk({"refusal": "I won't"}), _STOP),
        [("text", "I won't", ())],
        "refusal",
        "completed",
    ),
    (
        "a chunk without choices before the content",
        sse_stream(chunk() | {"choices": []}, chunk({"content": "a"}), _STOP),
        [("text", "a", ())],
        "end_turn",
        "completed",
    ),
    (
        "no [DONE], but a finish reason",
        sse_stream(chunk({"content": "a"}), _STOP, done=False),
        [("text", "a", ())],
        "end_turn",
        "completed",
    ),
    (
        "comments, ids, other events and keep-alive data are skipped",
        sse_stream(
            b": ping\n\nretry: 3\n\n",
            chunk({"content": "a"}),
            b"event: agentic_tool_call_progress\ndata: {}\n\ndata: ping\n\n",
            b"id: 7\n",
            _STOP,
        ),
        [("text", "a", ())],
        "end_turn",
        "completed",
    ),
    (
        "split characters",
        sse_stream(
            b'data: {"choices":[{"delta":{"content":"caf\xc3"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\xa9!"}}]}\n\n',
            _STOP,
        ),
        [("text", "café!", ())],
        "end_turn",
        "completed",
    ),
    (
        "content in parts",
        sse_stream(
            chunk({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
            _STOP,
        ),
        [("text", "ab", ())],
        "end_turn",
        "completed",
    ),
    (
        "other choices are ignored",
        sse_stream(
            chunk({"content": "a"}),
            chunk() | {"choices": [{"index": 1, "delta": {"content": "b"}}]},
            _STOP,
        ),
        [("text", "a", ())],
        "end_turn",
        "completed",
    ),
]


@pytest.mark.parametrize(
    ("data", "blocks", "stop", "status"),
    [row[1:] for row in _TABLE],
    ids=[row[0] for row in _TABLE],
)
def test_every_kind_of_stream_is_translated(
    data: bytes, blocks: list[tuple[str, str, tuple[str, ...]]], stop: str, status: str
) -> None:
    """Both dialects get the same blocks and the right end, whatever the engine's habits."""
    messages, responses = _translate(data)
    assert messages.blocks == blocks
    assert messages.stop == stop
    assert responses.blocks == blocks
    assert responses.stop == status


@given(st.sampled_from(_TABLE), st.lists(st.integers(0, 10_000), max_size=40), st.booleans())
def test_splitting_does_not_change_the_output(
    row: tuple[str, bytes, list[Any], str, str], cuts: list[int], returns: bool
) -> None:
    """The output does not depend on how the bytes are split, nor on line endings."""
    data = row[1].replace(b"\n", b"\r\n") if returns else row[1]
    messages, responses = _translate(data, tuple(cuts))
    assert (messages.blocks, messages.stop) == (row[2], row[3])
    assert (responses.blocks, responses.stop) == (row[2], row[4])


@given(st.data())
def test_interleaved_calls_are_separated(data: st.DataObject) -> None:
    """Calls with interleaved fragments are written one after the other."""
    count = data.draw(st.integers(1, 4))
    wanted: list[tuple[str, str, tuple[str, str]]] = []
    queues: list[list[dict[str, Any]]] = []
    for number in range(count):
        value = data.draw(st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3))
        text = json.dumps(value)
        cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=4))})
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
        head = call_delta(number, "", call_id=f"id{number}", name=f"f{number}")
        queues.append([head, *(call_delta(number, piece) for piece in pieces)])
        wanted.append(("tool_use", text, (f"id{number}", f"f{number}")))
    stream: list[dict[str, Any]] = []
    started = 0
    while any(queues):
        open_ones = [i for i in range(min(started + 1, count)) if queues[i]]
        chosen = data.draw(st.sampled_from(open_ones))
        started = max(started, chosen + 1)
        stream.append(chunk(queues[chosen].pop(0)))
    messages, responses = _translate(sse_stream(*stream, _CALLS))
    assert messages.blocks == wanted
    assert responses.blocks == wanted


_PIECES = st.one_of(
    st.builds(lambda t: {"content": t}, st.text(max_size=5)),
    st.builds(lambda t: {"reasoning_content": t}, st.text(max_size=5)),
    st.builds(
        call_delta,
        st.sampled_from([None, 0, 1, 2]),
        st.sampled_from([None, "", "{}", '{"a"', ":1}", {"a": 1}]),
        call_id=st.sampled_from([None, "a", "b"]),
        name=st.sampled_from([None, "f", "g"]),
    ),
)


@given(
    st.lists(_PIECES, max_size=12),
    st.sampled_from(["stop", "length", "tool_calls", None]),
    st.booleans(),
    st.booleans(),
)
def test_any_stream_follows_the_grammar(
    deltas: list[dict[str, Any]], finish: str | None, has_usage: bool, done: bool
) -> None:
    """Whatever an engine sends, the client's stream follows the grammar and ends once."""
    tail = [usage_chunk()] if has_usage else []
    data = sse_stream(*(chunk(delta) for delta in deltas), chunk(finish=finish), *tail, done=done)
    messages, responses = _translate(data)
    assert (messages.stop == "error") == (finish is None)
    assert (responses.stop == "error") == (finish is None)
    without_ids = [
        [(kind, text, extra[1:]) for kind, text, extra in parsed.blocks]
        for parsed in (messages, responses)
    ]
    if messages.stop != "error":  # an error leaves the last block open
        assert without_ids[0] == without_ids[1]


@pytest.mark.parametrize(
    "tail",
    [
        [chunk(finish="stop"), usage_chunk(prompt=11, completion=5)],
        [chunk(finish="stop", usage=usage(11, 5))],
        [chunk({"content": "b"}, usage=usage(1, 1)), chunk(finish="stop", usage=usage(11, 5))],
    ],
    ids=["extra chunk", "finish chunk", "every chunk"],
)
def test_usage_is_found_in_any_chunk(tail: list[dict[str, Any]]) -> None:
    """Usage in a usage chunk, in the finish chunk or in every chunk is written at the end."""
    messages, responses = _translate(sse_stream(chunk({"content": "a"}), *tail))
    assert (messages.usage["input_tokens"], messages.usage["output_tokens"]) == (11, 5)
    assert (responses.usage["input_tokens"], responses.usage["total_tokens"]) == (11, 16)


def test_cached_tokens_are_excluded_from_anthropic_input_tokens() -> None:
    """Anthropic counts cached tokens separately from the input, OpenAI as part of it."""
    engine_usage = usage(11, 5, prompt_tokens_details={"cached_tokens": 8})
    messages, responses = _translate(
        sse_stream(chunk({"content": "a"}), chunk(finish="stop", usage=engine_usage))
    )
    assert messages.usage["input_tokens"] == 3
    assert messages.usage["cache_read_input_tokens"] == 8
    assert responses.usage["input_tokens"] == 11
    assert responses.usage["input_tokens_details"]["cached_tokens"] == 8


def test_missing_usage_is_zero() -> None:
    """An engine that reports no usage gives zeros, because the fields are required."""
    messages, responses = _translate(sse_stream(chunk({"content": "a"}), chunk(finish="stop")))
    assert messages.usage["input_tokens"] == messages.usage["output_tokens"] == 0
    assert responses.usage["total_tokens"] == 0


def test_stop_sequence_is_reported_if_the_engine_names_it() -> None:
    """A string as stop_reason is the stop sequence; a number is a token id."""
    named = chunk({"content": "a"}) | {
        "choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": "END"}]
    }
    token = chunk({"content": "a"}) | {
        "choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": 7}]
    }
    for engine, expected in ((named, ("stop_sequence", "END")), (token, ("end_turn", None))):
        stream = _messages(stop_sequences=["END"])
        parsed = parse_messages_stream(run_translator(stream.feed, stream.end, sse_stream(engine)))
        assert (parsed.stop, parsed.stop_sequence) == expected


def test_hidden_thinking_keeps_the_stream_alive() -> None:
    """A client that did not ask for thinking gets pings until the answer begins, one per 64 pieces."""
    stream = _messages(shows_thinking=False)
    thinking = [chunk({"reasoning_content": "r"})] * 130
    data = sse_stream(*thinking, chunk({"content": "a"}), _STOP)
    out = run_translator(stream.feed, stream.end, data)
    assert parse_messages_stream(out).blocks == [("text", "a", ())]
    assert out.count(b"event: ping") == 3


def test_message_start_has_an_estimate_of_the_input() -> None:
    """Engines report usage at the end; without it, the estimate is all there is."""
    stream = _messages(prompt_tokens=42)
    out = run_translator(stream.feed, stream.end, sse_stream(chunk({"content": "a"}), _STOP))
    start = json.loads(parse_events(out)[0].data)
    assert start["message"]["usage"]["input_tokens"] == 42
    assert parse_messages_stream(out).usage["input_tokens"] == 42


def test_call_ids_are_unique_in_the_conversation() -> None:
    """A missing id is generated, and an id of an earlier turn is changed."""
    data = sse_stream(
        chunk(call_delta(0, "{}", name="f")),
        chunk(call_delta(1, "{}", call_id="call_0", name="g")),
        _CALLS,
    )
    for parsed in _translate(data, call_ids={"call_0"}):
        first, second = (extra[0] for _, _, extra in parsed.blocks)
        assert first
        assert second.startswith("call_0_")
        assert first != second


def test_only_first_call_drops_later_calls() -> None:
    """With only_first_call, later calls are left out."""
    data = sse_stream(
        chunk(call_delta(0, '{"x":1}', call_id="a", name="f")),
        chunk(call_delta(1, '{"y":2}', call_id="b", name="g")),
        _CALLS,
    )
    for parsed in _translate(data, only_first_call=True):
        assert parsed.blocks == [_A]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (
            b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}\n\n',
            UpstreamFailed,
        ),
        (b'event: error\ndata: {"message":"boom"}\n\n', UpstreamFailed),
        (b'error: {"code":503,"message":"boom","type":"unavailable_error"}\n\n', Unavailable),
        (b'data: {"error":"boom"}\n\n', UpstreamFailed),
        (
            b'data: {"error":{"message":"prompt is too long: 5000 tokens > 4096","type":"server_error"}}\n\n',
            PromptTooLong,
        ),
    ],
)
def test_error_in_a_stream_ends_it_with_an_error_event(data: bytes, kind: type[Exception]) -> None:
    """Every format of error becomes the dialect's error event with the engine's message."""
    before = sse_stream(chunk({"content": "a"}), done=False)
    messages, responses = _messages(), _responses()
    parsed = parse_messages_stream(
        run_translator(messages.feed, messages.end, before + data + sse_stream(_STOP))
    )
    assert parsed.stop == "error"
    assert "boom" in parsed.last["error"]["message"] or kind is PromptTooLong
    assert isinstance(messages.error, kind)
    assert not messages.complete
    parsed_response = parse_responses_stream(
        run_translator(responses.feed, responses.end, before + data + sse_stream(_STOP))
    )
    assert parsed_response.stop == "error"
    assert parsed_response.blocks == [], "a partial item is not sent as done"
    assert parsed_response.last["error"]["message"]


def test_error_as_the_first_event_leaves_the_stream_unstarted() -> None:
    """The caller can answer with an HTTP error instead."""
    for stream in (_messages(), _responses()):
        out = stream.feed(
            b'data: {"error":{"code":400,"message":"no","type":"invalid_request_error"}}\n\n'
        )
        assert not stream.started
        assert stream.error is not None
        assert stream.error.status == 400
        assert out  # for the case that the status was sent long ago


@pytest.mark.parametrize(
    "data", [b"", sse_stream(chunk({"content": "a"}), done=False), b"data: [DONE]\n\n"]
)
def test_end_without_finish_reason_is_an_error(data: bytes) -> None:
    """A stream that is cut off, or has no content, never looks like a complete response."""
    messages, responses = _messages(), _responses()
    assert parse_events(run_translator(messages.feed, messages.end, data))[-1].name == "error"
    assert (
        parse_events(run_translator(responses.feed, responses.end, data))[-2].name
        == "response.failed"
    )


def test_fail_ends_the_stream_once() -> None:
    """After `fail`, further bytes are ignored."""
    for stream, parse in (
        (_messages(), parse_messages_stream),
        (_responses(), parse_responses_stream),
    ):
        out = stream.feed(sse_stream(chunk({"content": "a"}), done=False))
        out += stream.fail(UpstreamTimeout("No byte for 600 s"))
        out += stream.feed(sse_stream(_STOP)) + stream.end() + stream.ping()
        parsed = parse(out)
        assert parsed.stop == "error"
        assert "No byte for 600 s" in parsed.last["error"]["message"]


def test_pings_start_the_stream_and_follow_the_grammar() -> None:
    """A ping before the first chunk starts the stream; pings can be anywhere until its end."""
    messages, responses = _messages(), _responses()
    out, responses_out = messages.ping(), responses.ping()
    assert messages.started
    for piece in (sse_stream(chunk({"content": "a"}), done=False), sse_stream(_STOP)):
        out += messages.ping() + messages.feed(piece) + messages.ping()
        responses_out += responses.ping() + responses.feed(piece) + responses.ping()
    assert parse_messages_stream(out).blocks == [("text", "a", ())]
    assert parse_responses_stream(responses_out).blocks == [("text", "a", ())]
    assert messages.complete
    assert messages.open() == b""


def test_lingering_stream_can_be_ended() -> None:
    """After a finish reason, `end` completes the response without usage or [DONE]."""
    stream = _messages()
    out = stream.feed(sse_stream(chunk({"content": "a"}), _STOP, done=False))
    assert not stream.complete
    out += stream.end()
    assert parse_messages_stream(out).stop == "end_turn"
    assert stream.complete


def test_namespaces_are_restored() -> None:
    """A call of a flattened function has the namespace and the name that the client declared."""
    stream = _responses(tool_names={"ns__fn": ToolName("fn", "ns")})
    data = sse_stream(chunk(call_delta(0, "{}", call_id="a", name="ns__fn")), _CALLS)
    item = parse_responses_stream(run_translator(stream.feed, stream.end, data)).last["output"][0]
    assert (item["namespace"], item["name"], item["call_id"]) == ("ns", "fn", "a")
