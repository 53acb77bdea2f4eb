"""Assembly of tool calls: repetitions, missing and unreadable arguments, and the older `function_call`."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from dialects_kit import (
    call_delta,
    chunk,
    parse_events,
    parse_messages_stream,
    parse_responses_stream,
    response_in_progress,
    responses_stream,
    run_translator,
    sse_stream,
)
from hypothesis import given
from hypothesis import strategies as st

from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.anthropic.stream import MessagesStreamWriter
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.stream.aggregate import StreamAggregator
from cortex_server.dialects.stream.completion_repair import repair_completion
from cortex_server.dialects.stream.repair import StreamRepair
from cortex_server.dialects.tool_calls import Nesting, ToolCallTracker

Calls = list[tuple[str, str]]
"""Names and arguments."""

_CALLS = chunk(finish="tool_calls")
_WHOLE = '{"path": "a", "lines": [1, {"x": "}"}]}'


def _from_repair(data: bytes) -> Calls:
    """Concatenate fragments by index, as the official SDKs do."""
    repair = StreamRepair(response_id="r", client_wants_usage=False)
    calls: dict[int, list[str]] = {}
    for event in parse_events(run_translator(repair.feed, repair.end, data))[:-1]:
        for choice in json.loads(event.data)["choices"]:
            for fragment in choice["delta"].get("tool_calls") or ():
                call = calls.setdefault(fragment["index"], ["", ""])
                call[0] += fragment["function"].get("name") or ""
                call[1] += fragment["function"].get("arguments") or ""
    return [(name, arguments) for name, arguments in calls.values()]


def _from_aggregator(data: bytes) -> Calls:
    aggregator = StreamAggregator(response_id="r")
    aggregator.feed(data)
    calls = json.loads(aggregator.end())["choices"][0]["message"]["tool_calls"]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def _from_messages(data: bytes) -> Calls:
    writer = MessagesStreamWriter(message_id="m", model="m")
    blocks = parse_messages_stream(run_translator(writer.feed, writer.end, data)).blocks
    return [(extra[1], content or "{}") for kind, content, extra in blocks if kind == "tool_use"]


def _from_responses(data: bytes) -> Calls:
    writer = responses_stream()
    output = parse_responses_stream(run_translator(writer.feed, writer.end, data)).last["output"]
    return [(i["name"], i["arguments"]) for i in output if i["type"] == "function_call"]


_CLIENTS = [_from_repair, _from_aggregator, _from_messages, _from_responses]


def _deltas(*arguments: Any, **more: Any) -> bytes:
    """Return a stream with one call in these fragments; the first has id and name."""
    first, *rest = arguments
    deltas = [
        call_delta(0, first, call_id="c", name="f"),
        *(call_delta(0, a, **more) for a in rest),
    ]
    return sse_stream(*map(chunk, deltas), _CALLS)


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize(
    "data",
    [
        _deltas(_WHOLE, _WHOLE),
        _deltas(_WHOLE, json.dumps(json.loads(_WHOLE), separators=(",", ":"))),
        _deltas(_WHOLE[:5], _WHOLE[:12], _WHOLE),
        _deltas("{", _WHOLE[:12], _WHOLE, _WHOLE),
        _deltas("", _WHOLE[:12], _WHOLE[12:], _WHOLE),
        _deltas(_WHOLE, _WHOLE, call_id="c", name="f"),
        _deltas(_WHOLE[:12], _WHOLE, name="f"),
        _deltas(_WHOLE, _WHOLE, name="f"),
        _deltas(_WHOLE, "", " "),
    ],
    ids=[
        "whole",
        "whole, compact",
        "cumulative",
        "cumulative from a brace",
        "whole at the end",
        "with id and name",
        "cumulative with the name",
        "whole with the name",
        "white space",
    ],
)
def test_arguments_that_are_sent_again_are_one_object(client: Any, data: bytes) -> None:
    """Neither doubled nor two calls."""
    ((name, arguments),) = client(data)
    assert name == "f"
    assert json.loads(arguments) == json.loads(_WHOLE)


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
@given(
    value=st.text(alphabet='{}[]":,\\\\a \n', max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_braces_in_strings_are_no_repetition(client: Any, value: str, cuts: list[int]) -> None:
    """A value that looks like JSON, cut anywhere, is kept as it is."""
    whole = json.dumps({"text": value * 2, "more": [value]})
    edges = [0, *sorted({cut % len(whole) for cut in cuts} - {0}), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    ((_, arguments),) = client(_deltas(*pieces))
    assert arguments == whole


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
def test_two_calls_with_the_same_arguments_are_two_calls(client: Any) -> None:
    """With different ids, or without an index, they are no repetition."""
    both = [
        call_delta(0, "{}", call_id="a", name="f"),
        call_delta(1, "{}", call_id="b", name="f"),
    ]
    assert client(sse_stream(*map(chunk, both), _CALLS)) == [("f", "{}")] * 2
    both = [call_delta(None, '{"x":1}', name="f"), call_delta(None, '{"x":1}', name="f")]
    assert client(sse_stream(*map(chunk, both), _CALLS)) == [("f", '{"x":1}')] * 2


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
def test_an_id_that_changes_with_each_fragment_is_one_call(client: Any) -> None:
    """VLLM gave each fragment an id of its own for a while."""
    deltas = [
        call_delta(0, "", call_id="a", name="f"),
        call_delta(0, '{"x"', call_id="b"),
        call_delta(0, ":1}", call_id="c"),
    ]
    assert client(sse_stream(*map(chunk, deltas), _CALLS)) == [("f", '{"x":1}')]


@pytest.mark.parametrize("client", _CLIENTS, ids=lambda client: client.__name__)
@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_missing_arguments_are_an_empty_object(client: Any, arguments: Any, finish: str) -> None:
    """Clients parse the arguments as JSON, also those of a call without parameters."""
    delta = call_delta(0, arguments, call_id="c", name="f")
    assert client(sse_stream(chunk(delta), chunk(finish=finish))) == [("f", "{}")]
    assert client(sse_stream(chunk(delta, finish=finish))) == [("f", "{}")]


@pytest.mark.parametrize("client", _CLIENTS[1:], ids=lambda client: client.__name__)
def test_the_older_function_call_is_a_tool_call_in_other_dialects(client: Any) -> None:
    """Its name comes first, its arguments in fragments."""
    pieces = [{"name": "f", "arguments": ""}, {"arguments": '{"x"'}, {"arguments": ":1}"}]
    data = sse_stream(
        *(chunk({"function_call": piece}) for piece in pieces), chunk(finish="function_call")
    )
    if client is _from_aggregator:
        aggregator = StreamAggregator(response_id="r")
        aggregator.feed(data)
        choice = json.loads(aggregator.end())["choices"][0]
        assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"x":1}'}
        assert choice["finish_reason"] == "function_call"
    else:
        assert client(data) == [("f", '{"x":1}')]


def test_the_older_function_call_is_unchanged_for_clients_of_chat_completions() -> None:
    """A client that sent `functions` expects it."""
    data = sse_stream(
        chunk({"function_call": {"name": "f", "arguments": "{}"}}), chunk(finish="function_call")
    )
    repair = StreamRepair(response_id="r", client_wants_usage=False)
    assert run_translator(repair.feed, repair.end, data) == data


def _whole_response(call: dict[str, Any], finish: str = "tool_calls") -> bytes:
    message = {"role": "assistant", "content": None} | call
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize(
    ("arguments", "text", "value"),
    [
        ('{"x": 1}', '{"x": 1}', {"x": 1}),
        ({"x": 1}, '{"x":1}', {"x": 1}),
        ("", "{}", {}),
        ("  ", "{}", {}),
        (None, "{}", {}),
        ('{"x": "cut o', '{"x": "cut o', {"arguments": '{"x": "cut o'}),
        ("Paris", "Paris", {"arguments": "Paris"}),
        ("[1]", "[1]", {"arguments": "[1]"}),
        ("7", "7", {"arguments": "7"}),
    ],
)
def test_arguments_of_whole_responses_are_kept(arguments: Any, text: str, value: Any) -> None:
    """What is not an object is never replaced by an empty one, which would call the tool with its defaults."""
    call = {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    body = _whole_response(call)
    repaired = json.loads(repair_completion(body, "r")[0])["choices"][0]["message"]
    assert repaired["tool_calls"][0]["function"]["arguments"] == text
    assert json.loads(to_message(body, message_id="m", model="m"))["content"][0]["input"] == value
    response = to_response(body, response_in_progress(), now=lambda: 9)
    item = json.loads(msgspec.json.encode(response))["output"][0]
    assert item["arguments"].replace(" ", "") == text.replace(" ", "")


def test_repairs_of_whole_responses_are_counted_by_kind() -> None:
    """Each under its own name, once."""
    call = {"tool_calls": [{"function": {"name": "f"}}]}
    _, repairs = repair_completion(_whole_response(call, "eos"), "r")
    assert repairs == {
        "tool_arguments_missing": 1,
        "tool_call_id": 1,
        "finish_reason_tool_calls": 1,
    }
    _, repairs = repair_completion(_whole_response({"content": "a"}, "eos"), "r")
    assert repairs == {"finish_reason": 1}
    _, repairs = repair_completion(_whole_response({"content": 5}, "stop"), "r")
    assert repairs == {"field_type": 1}


def test_the_older_function_call_of_a_whole_response_is_translated() -> None:
    """As a tool call with an id of the gateway's."""
    body = _whole_response(
        {"function_call": {"name": "f", "arguments": '{"x":1}'}}, "function_call"
    )
    (block,) = json.loads(to_message(body, message_id="m", model="m"))["content"]
    assert (block["name"], block["input"]) == ("f", {"x": 1})
    assert block["id"]
    assert repair_completion(body, "r") == (body, {})


_TOKENS = st.sampled_from(["{", "}", "[", "]", '"', "\\", "a", ":", ",", " "])


@given(st.lists(_TOKENS, max_size=30).map("".join), st.lists(st.integers(0, 30), max_size=5))
def test_nesting_does_not_depend_on_how_the_text_is_cut(text: str, cuts: list[int]) -> None:
    """Also between a backslash and what it escapes."""
    whole, pieces = Nesting(), Nesting()
    if text:
        whole.scan(text)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in itertools.pairwise(edges):
        pieces.scan(text[start:end])
    assert pieces.is_closed == whole.is_closed


@given(
    st.recursive(
        st.text(max_size=4), lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3)
    )
)
def test_an_object_is_complete_at_its_end_and_not_before(value: Any) -> None:
    """Each prefix is incomplete."""
    text = json.dumps({"x": value})
    tracker = ToolCallTracker()
    for position, character in enumerate(text):
        call, _ = tracker.add(0, "c", "", character)
        assert call.is_complete is (position == len(text) - 1)
