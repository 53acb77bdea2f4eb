"""The embedded worker's wire: what it takes, what it refuses, and how it answers."""

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
    """A chat request."""
    body = {"messages": [{"role": "user", "content": "hi"}]} | more
    return parse_job("chat", json.dumps(body).encode())


def events(answer: Answer, pieces: list[Piece]) -> list[dict]:
    """The JSON of all events but [DONE], which must come last and only once."""
    data = b"".join(chunk for piece in pieces for chunk in answer.chunks(piece))
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_content_parts_become_text():
    """Text parts are joined, a missing content is empty, and tool results keep their call's id."""
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


def test_both_names_of_the_token_limit_are_known():
    """max_completion_tokens is OpenAI's newer name and wins."""
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_a_prompt_passes_the_template_untouched():
    """A text completion is one turn of the role that the template lets through; its default limit is OpenAI's 16."""
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
def test_what_the_engine_cant_do_is_refused_by_name(body, param):
    """A request for something impossible is a 400 that names the field, never a silent default."""
    with pytest.raises(BadRequest) as refused:
        chat(**body)
    assert refused.value.param == param


def test_a_missing_field_is_named():
    """Whoever forgets the messages is told so."""
    with pytest.raises(BadRequest) as refused:
        parse_job("chat", b"{}")
    assert refused.value.param == "messages"


def test_whole_numbers_may_come_in_other_spellings():
    """Some clients write every number with a point, and some as text; what else they send is not looked at."""
    assert chat(max_tokens=5.0, top_k="7", seed=1, user="me").max_tokens == 5


@given(st.binary(max_size=40))
def test_no_body_crashes_the_parser(body):
    """Any bytes are a request or a 400."""
    for kind in ("chat", "text"):
        with contextlib.suppress(BadRequest):
            parse_job(kind, body)


def test_a_body_that_is_no_json_is_malformed():
    """Syntax errors have their own code."""
    with pytest.raises(MalformedBody):
        parse_job("chat", b"{")


def test_tools_are_left_out_when_the_client_says_none():
    """tool_choice none gives the model no tools; auto gives it all of them."""
    assert chat(tools=[{"type": "function"}], tool_choice="none").tools == ()
    assert chat(tools=[{"type": "function"}], tool_choice="auto").tools == ('{"type": "function"}',)


@given(st.lists(st.text(), max_size=6), st.booleans())
def test_a_stream_says_what_the_whole_answer_says(texts, usage_wanted):
    """Deltas joined are the content; the role comes once and first; usage comes only when asked for."""
    pieces = [Piece(text) for text in texts] + [Piece("", finish_reason="stop", usage=Usage(3, 4))]
    job = chat(stream=True, stream_options={"include_usage": usage_wanted})
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
    asked = [c["usage"] for c in chunks if "usage" in c]
    expected = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert asked == ([expected] if usage_wanted else [])
    assert whole["usage"] == expected


def test_tool_calls_have_openais_shape():
    """A call is whole in one delta, and content is null in the whole answer."""
    call = Piece(tool_calls=(ToolCall(0, "call-1", "f", '{"a":1}'),), finish_reason="tool_calls")
    chunks = events(Answer(chat(stream=True), "id", "m", 1), [call])
    (made,) = chunks[1]["choices"][0]["delta"]["tool_calls"]
    function = {"name": "f", "arguments": '{"a":1}'}
    assert made == {"index": 0, "id": "call-1", "type": "function", "function": function}
    message = json.loads(Answer(chat(), "id", "m", 1).whole([call]))["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == function
