"""Translation of Responses API requests, and of unstreamed responses."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from dialects_kit import with_junk
from hypothesis import given
from hypothesis import strategies as st
from rigs.lazy_import import openai

from cortex_common.errors import (
    BadRequest,
    MissingModel,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
)
from cortex_common.schema.engine_traits import LLAMACPP, MISTRALRS, OPENAI, EngineTraits
from cortex_server.dialects.chat import TranslatedRequest
from cortex_server.dialects.responses.request import parse_request, to_chat
from cortex_server.dialects.responses.response import to_error, to_response


def _translate(
    traits: EngineTraits = OPENAI, *, stream: bool = False, **fields: Any
) -> TranslatedRequest:
    request = parse_request(json.dumps({"model": "gpt-x", "input": "hi"} | fields).encode())
    return to_chat(request, model="engine", traits=traits, stream=stream)


def _chat(traits: EngineTraits = OPENAI, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_translate(traits, stream=stream, **fields).body)
    return found


def _messages(*items: dict[str, Any], traits: EngineTraits = OPENAI) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _chat(traits, input=list(items))["messages"]
    return found


def _message_item(role: str, *texts: str, part: str = "input_text") -> dict[str, Any]:
    return {
        "type": "message",
        "role": role,
        "content": [{"type": part, "text": text} for text in texts],
    }


_FUNCTION = {
    "type": "function",
    "name": "f",
    "description": "d",
    "parameters": {"type": "object"},
    "strict": False,
}
_NAMESPACE = {
    "type": "namespace",
    "name": "ns",
    "description": "d",
    "tools": [
        {"type": "function", "name": "fn", "parameters": {"type": "object"}},
        {"type": "custom", "name": "c"},
    ],
}
_CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "f",
    "arguments": '{"x":1}',
}
_OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "out"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"model": "engine", "messages": [{"role": "user", "content": "hi"}]}),
        (
            {"max_output_tokens": 9, "temperature": 0, "top_p": 0.5},
            {"max_tokens": 9, "temperature": 0, "top_p": 0.5},
        ),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"summary": "auto"}}, {"reasoning_effort": None}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"response_format": None}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "n",
                        "schema": {"a": 1},
                        "strict": True,
                    }
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}, "strict": True},
                }
            },
        ),
        (
            {
                "include": ["reasoning.encrypted_content"],
                "prompt_cache_key": "k",
                "client_metadata": {},
                "store": True,
                "metadata": {},
                "truncation": "auto",
            },
            {"include": None, "store": None, "metadata": None, "truncation": None},
        ),
    ],
)
def test_top_level_fields_are_translated_or_dropped(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Fields without a counterpart are not forwarded."""
    chat = _chat(**fields)
    assert {key: chat.get(key) for key in expected} == expected


def test_stream_requests_usage() -> None:
    """A streamed request requests usage."""
    assert _chat(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream" not in _chat()


def test_leading_instructions_are_one_system_message() -> None:
    """Instructions and leading developer messages are joined; so are adjacent user turns."""
    chat = _chat(
        instructions="a",
        input=[
            _message_item("developer", "b"),
            _message_item("developer", "c", "d"),
            _message_item("user", "env"),
            _message_item("user", "go"),
        ],
    )
    assert chat["messages"] == [
        {"role": "system", "content": "a\n\nb\n\nc\n\nd"},
        {"role": "user", "content": "env\ngo"},
    ]


def test_later_developer_message_becomes_a_reminder() -> None:
    """It joins a user turn, because chat templates reject a later system message."""
    found = _messages(
        _message_item("user", "hi"),
        _message_item("assistant", "ok", part="output_text"),
        _message_item("developer", "d"),
    )
    assert found[2] == {"role": "user", "content": "<system-reminder>\nd\n</system-reminder>"}


def test_items_of_an_assistant_turn_are_merged() -> None:
    """Reasoning, text and calls of one turn become one message, followed by the results."""
    reasoning = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "content": None,
    }
    found = _messages(
        _message_item("user", "hi"),
        reasoning,
        _message_item("assistant", "ok", part="output_text"),
        _CALL,
        _CALL | {"call_id": "c2", "arguments": ""},
        _OUTPUT,
        _OUTPUT | {"call_id": "c2", "output": [{"type": "input_text", "text": "more"}]},
        traits=LLAMACPP,
    )
    assert found[1] == {
        "role": "assistant",
        "content": "ok",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ],
    }
    assert found[2:] == [
        {"role": "tool", "content": "out", "tool_call_id": "c1"},
        {"role": "tool", "content": "more", "tool_call_id": "c2"},
    ]


def test_empty_reasoning_is_dropped() -> None:
    """Reasoning with empty or null content is dropped for every engine."""
    items = [
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"},
        _message_item("user", "hi"),
    ]
    assert (
        _messages(*items)
        == _messages(*items, traits=LLAMACPP)
        == [{"role": "user", "content": "hi"}]
    )


def test_images_keep_their_place_or_follow_tool_outputs() -> None:
    """An input image keeps its place; one in a tool output comes in a user message after it."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    found = _messages(
        {"role": "user", "content": [{"type": "input_text", "text": "see"}, image]},
        _CALL,
        _OUTPUT | {"output": [image]},
    )
    assert found[0]["content"] == [{"type": "text", "text": "see"}, part]
    assert found[2:] == [
        {"role": "tool", "content": "(image)", "tool_call_id": "c1"},
        {"role": "user", "content": [part]},
    ]


def test_tools_are_nested_and_namespaces_flattened() -> None:
    """Functions in a namespace get a flat name; tools without a counterpart are dropped and recorded."""
    found = _translate(tools=[_FUNCTION, _NAMESPACE, {"type": "web_search"}])
    chat = json.loads(found.body)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["f", "ns__fn"]
    assert chat["tools"][0]["function"] == {k: v for k, v in _FUNCTION.items() if k != "type"}
    assert found.function_names == {"ns__fn": ("ns", "fn")}
    assert [line.split(":")[0] for line in found.dropped] == ["tools.1.tools.1", "tools.2"]


def test_earlier_calls_in_a_namespace_get_the_flat_name() -> None:
    """The model sees the same name in the history as in the tools."""
    found = _messages(_CALL | {"name": "fn", "namespace": "ns"}, _OUTPUT)
    assert found[0]["tool_calls"][0]["function"]["name"] == "ns__fn"


@pytest.mark.parametrize(
    ("traits", "choice", "expected", "tools"),
    [
        (OPENAI, "auto", "auto", 2),
        (OPENAI, "required", "required", 2),
        (
            OPENAI,
            {"type": "function", "name": "f"},
            {"type": "function", "function": {"name": "f"}},
            2,
        ),
        (LLAMACPP, {"type": "function", "name": "f"}, "required", 1),
        (
            OPENAI,
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}],
            },
            "required",
            1,
        ),
        (OPENAI, {"type": "web_search"}, "auto", 2),
    ],
)
def test_tool_choice_depends_on_engine_traits(
    traits: EngineTraits, choice: Any, expected: Any, tools: int
) -> None:
    """Modes, function names and sets of allowed tools are translated."""
    chat = _chat(traits, tools=[_FUNCTION, _NAMESPACE], tool_choice=choice)
    assert chat["tool_choice"] == expected
    assert len(chat["tools"]) == tools


def test_disabled_parallel_calls_depend_on_engine_traits() -> None:
    """Engines with the parameter get it; for others, only the first call is returned."""
    fields = {"tools": [_FUNCTION], "parallel_tool_calls": False}
    assert _chat(LLAMACPP, **fields)["parallel_tool_calls"] is False
    without = _translate(MISTRALRS, **fields)
    assert without.only_first_call
    assert "parallel_tool_calls" not in json.loads(without.body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "hologram"}]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0",
        ),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_unsupported_request_is_rejected_by_field(fields: dict[str, Any], param: str) -> None:
    """References to stored state, and fields without a counterpart, are a 400 that names the field."""
    with pytest.raises(BadRequest) as caught:
        _translate(**fields)
    assert caught.value.param == param


def test_item_reference_is_rejected_with_a_hint() -> None:
    """The AI SDK sends references from the second step on, unless `store` is false."""
    with pytest.raises(BadRequest) as caught:
        _translate(input=[{"type": "item_reference", "id": "x"}])
    assert "store" in " ".join(caught.value.hints)


def test_request_without_a_model_is_rejected() -> None:
    """A body without a model is a MissingModel error."""
    with pytest.raises(MissingModel):
        parse_request(b'{"input":"hi"}')


def test_items_of_openai_tools_are_dropped() -> None:
    """They mean nothing to a local model, and are recorded for the log."""
    found = _translate(input=[{"type": "web_search_call", "id": "w"}, _message_item("user", "hi")])
    assert found.dropped == ("input.0: web_search_call",)


_EVERYTHING = {
    "model": "m",
    "instructions": "i",
    "input": [
        _message_item("developer", "d"),
        {"role": "user", "content": [{"type": "input_image", "image_url": "u"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "r"}], "content": None},
        _CALL | {"namespace": "ns"},
        _OUTPUT | {"output": [{"type": "input_text", "text": "o"}]},
    ],
    "tools": [_FUNCTION, _NAMESPACE],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "f"}],
    },
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
    "reasoning": {"effort": "high"},
    "max_output_tokens": 9,
}


@given(with_junk(_EVERYTHING), st.sampled_from([OPENAI, LLAMACPP, MISTRALRS]))
def test_junk_in_a_request_is_a_client_error(body: Any, traits: EngineTraits) -> None:
    """A field of a wrong type is a 400, or has no effect; it never breaks the gateway."""
    with contextlib.suppress(BadRequest):
        to_chat(
            parse_request(json.dumps(body).encode()), model="engine", traits=traits, stream=True
        )


def _response(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    body = json.dumps(
        {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    ).encode()
    found: dict[str, Any] = json.loads(
        to_response(body, response_id="resp_1", model="gpt-x", created=7.5, **more)
    )
    openai.types.responses.Response.model_validate(found)  # the SDK requires every field
    return found


def test_response_items_are_ordered() -> None:
    """Reasoning, message and calls are items; namespaces are restored; usage is reported."""
    call = {"id": "c1", "function": {"name": "ns__fn", "arguments": '{"x":1}'}}
    found = _response(
        {"content": "hi", "reasoning_content": "hm", "tool_calls": [call]},
        function_names={"ns__fn": ("ns", "fn")},
    )
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call"]
    assert found["output"][1]["content"][0]["text"] == "hi"
    assert (found["output"][2]["namespace"], found["output"][2]["name"]) == ("ns", "fn")
    assert found["status"] == "completed"
    assert found["usage"]["total_tokens"] == 5
    assert (found["model"], found["created_at"]) == ("gpt-x", 7)


def test_truncated_response_is_incomplete() -> None:
    """The finish reason "length" becomes max_output_tokens."""
    found = _response({"content": "hi"}, "length")
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLong("x"), "context_length_exceeded"),
        (Unavailable("x"), "server_is_overloaded"),
        (BadRequest("x"), "invalid_prompt"),
        (UpstreamFailed("x"), "server_error"),
    ],
)
def test_errors_have_codes_that_clients_know(error: Any, code: str) -> None:
    """Codex distinguishes these codes."""
    assert to_error(error).code == code
