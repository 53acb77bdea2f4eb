"""The embedded worker's requests and answers."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, MalformedBody
from neuron_server.embedded_engine.openai_wire import (
    RAW,
    Answer,
    Job,
    Piece,
    ToolCall,
    Usage,
    parse_job,
)


def chat(**more) -> Job:
    """Parse a chat request."""
    body = {"messages": [{"role": "user", "content": "hi"}]} | more
    return parse_job("chat", json.dumps(body).encode())


def events(answer: Answer, pieces: list[Piece]) -> list[dict]:
    """Return the JSON of all events but [DONE], which must be the last and only one."""
    data = b"".join(chunk for piece in pieces for chunk in answer.chunks(piece))
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_content_parts_become_text():
    """Text parts are joined, missing content is empty, and tool results keep the id of their call."""
    job = chat(
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
        ]
    )
    assert [turn["content"] for turn in job.messages] == ["ab", "", "r"]
    assert job.messages[1]["tool_calls"] == [{"id": "1"}]
    assert job.messages[2]["tool_call_id"] == "1"


def test_both_names_of_the_token_limit_are_supported():
    """max_completion_tokens is OpenAI's newer name and takes precedence."""
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_a_prompt_is_not_changed_by_the_template():
    """A text completion is one turn with the role that is passed through; the default limit is OpenAI's 16."""
    job = parse_job("text", b'{"prompt": ["once"]}')
    assert job.messages == ({"role": RAW, "content": "once"},)
    assert job.max_tokens == 16


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": RAW, "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"tools": [{}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{}], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_unsupported_requests_are_rejected_by_field(body, param):
    """An unsupported request is a 400 that names the field, never silently changed."""
    with pytest.raises(BadRequest) as rejected:
        chat(**body)
    assert rejected.value.param == param


def test_a_missing_field_is_named():
    """The error for a missing field names it."""
    with pytest.raises(BadRequest) as rejected:
        parse_job("chat", b"{}")
    assert rejected.value.param == "messages"


def test_integers_are_accepted_in_other_notations():
    """Some clients write integers as floats or strings; unknown fields are ignored."""
    assert chat(max_tokens=5.0, top_k="7", seed=1, user="me").max_tokens == 5


@given(st.binary(max_size=40))
def test_no_body_crashes_the_parser(body):
    """Any bytes are a valid request or a 400."""
    for kind in ("chat", "text"):
        with contextlib.suppress(BadRequest):
            parse_job(kind, body)


def test_invalid_json_is_a_malformed_body():
    """Syntax errors have a code of their own."""
    with pytest.raises(MalformedBody):
        parse_job("chat", b"{")


def test_tools_are_omitted_with_tool_choice_none():
    """With tool_choice none the model gets no tools, with auto all of them."""
    assert chat(tools=[{"type": "function"}], tool_choice="none").tools == ()
    assert chat(tools=[{"type": "function"}], tool_choice="auto").tools == ('{"type": "function"}',)


@given(st.lists(st.text(), max_size=6), st.booleans())
def test_a_stream_equals_the_complete_answer(texts, include_usage):
    """Joined deltas equal the content; the role is sent once, first; usage is sent only on request."""
    pieces = [Piece(text) for text in texts] + [Piece("", finish_reason="stop", usage=Usage(3, 4))]
    job = chat(stream=True, stream_options={"include_usage": include_usage})
    answer = Answer(job, "id", "m", 1)
    chunks = events(answer, pieces)
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    whole = json.loads(Answer(job, "id", "m", 1).whole(pieces))
    assert (
        "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]
    )
    assert [d["role"] for d in deltas if "role" in d] == ["assistant"]
    assert "role" in deltas[0]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    usages = [c["usage"] for c in chunks if "usage" in c]
    expected = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert usages == ([expected] if include_usage else [])
    assert whole["usage"] == expected


def test_tool_calls_have_openais_format():
    """A call is complete in one delta, and content is null in the complete answer."""
    call = Piece(tool_calls=(ToolCall(0, "call-1", "f", '{"a":1}'),), finish_reason="tool_calls")
    chunks = events(Answer(chat(stream=True), "id", "m", 1), [call])
    (tool_call,) = chunks[1]["choices"][0]["delta"]["tool_calls"]
    function = {"name": "f", "arguments": '{"a":1}'}
    assert tool_call == {"index": 0, "id": "call-1", "type": "function", "function": function}
    message = json.loads(Answer(chat(), "id", "m", 1).whole([call]))["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == function
