"""Translation of Responses API requests, and of unstreamed responses."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import msgspec
import pytest
from dialects_kit import response_in_progress, with_junk
from hypothesis import given
from hypothesis import strategies as st
from rigs.lazy_import import openai

from cortex_common.errors import (
    BadRequest,
    CortexError,
    ItemNotFound,
    MissingModel,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
)
from cortex_common.schema.engine_traits import LLAMACPP, MISTRALRS, OPENAI, EngineTraits
from cortex_server.dialects.chat import ToolName, TranslatedRequest
from cortex_server.dialects.responses.compaction import encode_summary, user_messages
from cortex_server.dialects.responses.history import resolve_input
from cortex_server.dialects.responses.parameters import parse_request
from cortex_server.dialects.responses.request import to_chat
from cortex_server.dialects.responses.resource import new_response
from cortex_server.dialects.responses.response import to_error, to_response


class _Stored:
    """The stored responses of a key."""

    def __init__(self, conversation: list[dict[str, Any]] | None = None, **items: Any) -> None:
        self._conversation = conversation
        self._items = items

    def conversation(self, response_id: str) -> list[msgspec.Raw] | None:
        """Return the conversation, whatever its id."""
        found = self._conversation
        return None if found is None else [msgspec.Raw(msgspec.json.encode(i)) for i in found]

    def item(self, item_id: str) -> msgspec.Raw | None:
        """Return an item by its id."""
        found = self._items.get(item_id)
        return None if found is None else msgspec.Raw(msgspec.json.encode(found))


def _translate(
    traits: EngineTraits = OPENAI,
    *,
    stream: bool = False,
    stored: _Stored | None = None,
    **fields: Any,
) -> TranslatedRequest:
    request = parse_request(json.dumps({"model": "gpt-x", "input": "hi"} | fields).encode())
    items = resolve_input(request, stored or _Stored())
    return to_chat(request, items, model="engine", traits=traits, stream=stream)


def _chat(traits: EngineTraits = OPENAI, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_translate(traits, **fields).body)
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
        (
            {"presence_penalty": 0.5, "frequency_penalty": -1},
            {"presence_penalty": 0.5, "frequency_penalty": -1},
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
    """Functions in a namespace get a flat name; tools that agents add unasked are left out and recorded."""
    found = _translate(tools=[_FUNCTION, _NAMESPACE, {"type": "web_search"}])
    chat = json.loads(found.body)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["f", "ns__fn", "ns__c"]
    assert chat["tools"][0]["function"] == {k: v for k, v in _FUNCTION.items() if k != "type"}
    assert found.tool_names == {
        "ns__fn": ToolName("fn", "ns"),
        "ns__c": ToolName("c", "ns", custom=True),
    }
    assert [line.split(":")[0] for line in found.dropped] == ["tools.2"]


def test_custom_tool_is_a_function_with_a_text() -> None:
    """Its grammar is part of the description, and earlier calls have the same form."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "description": "Patch files.",
        "format": grammar,
    }
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": 'a"b'}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}
    chat = _chat(tools=[tool], input=[call, output])
    (function,) = [entry["function"] for entry in chat["tools"]]
    assert function["parameters"]["required"] == ["input"]
    assert function["description"].startswith("Patch files.")
    assert "start: /.+/" in function["description"]
    (earlier,) = chat["messages"][0]["tool_calls"]
    assert json.loads(earlier["function"]["arguments"]) == {"input": 'a"b'}
    assert chat["messages"][1] == {"role": "tool", "content": "done", "tool_call_id": "c1"}


def test_earlier_calls_in_a_namespace_get_the_flat_name() -> None:
    """The model sees the same name in the history as in the tools."""
    found = _messages(_CALL | {"name": "fn", "namespace": "ns"}, _OUTPUT)
    assert found[0]["tool_calls"][0]["function"]["name"] == "ns__fn"


@pytest.mark.parametrize(
    ("traits", "choice", "expected", "tools"),
    [
        (OPENAI, "auto", "auto", 3),
        (OPENAI, "required", "required", 3),
        (
            OPENAI,
            {"type": "function", "name": "f"},
            {"type": "function", "function": {"name": "f"}},
            3,
        ),
        (
            OPENAI,
            {"type": "custom", "name": "c", "namespace": "ns"},
            {"type": "function", "function": {"name": "ns__c"}},
            3,
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
        ({"top_k": 5}, "top_k"),
        ({"reasoning": {"effort": "low", "depth": 3}}, "reasoning.depth"),
        ({"text": {"format": {"type": "text", "style": 1}}}, "text.format.style"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": ["secrets"]}, "include"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"truncation": "middle"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "hologram"}]}, "tools.0"),
        ({"tools": [_FUNCTION, {"type": "mcp", "server_label": "x"}]}, "tools.1"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [_FUNCTION], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [_FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        (
            {
                "tools": [_FUNCTION],
                "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []},
            },
            "tool_choice",
        ),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "item_reference"}]}, "input.0"),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAAA"}]}, "input.0"),
        ({"input": [{"type": "hologram"}]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": []}]}, "input"),
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


def test_missing_item_is_a_404_with_a_hint() -> None:
    """The AI SDK sends references from the second step on."""
    with pytest.raises(ItemNotFound) as caught:
        _translate(input=[_message_item("user", "hi"), {"type": "item_reference", "id": "x"}])
    assert caught.value.param == "input.1"
    assert "items themselves" in " ".join(caught.value.hints)


@pytest.mark.parametrize("reference", [{"type": "item_reference", "id": "x"}, {"id": "x"}])
def test_referenced_item_takes_the_place_of_the_reference(reference: dict[str, Any]) -> None:
    """The type of a reference is optional in the specification."""
    stored = _Stored(x=_message_item("assistant", "ok", part="output_text"))
    chat = _chat(stored=stored, input=[_message_item("user", "hi"), reference])
    assert chat["messages"][1] == {"role": "assistant", "content": "ok"}


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "x" * 10_000},
        {"input": [{"type": "item_reference", "id": "x" * 10_000}]},
    ],
)
def test_long_id_is_not_repeated_whole(fields: dict[str, Any]) -> None:
    """An error is not larger because the request was."""
    with pytest.raises(CortexError) as caught:
        _translate(**fields)
    assert len(caught.value.message) < 200


def test_previous_response_comes_before_the_input() -> None:
    """Instructions are not carried over; the input can be missing."""
    earlier = [_message_item("user", "a"), _message_item("assistant", "b", part="output_text")]
    chat = _chat(stored=_Stored(earlier), previous_response_id="resp_0", input="c")
    assert [m["content"] for m in chat["messages"]] == ["a", "b", "c"]
    chat = _chat(stored=_Stored(earlier), previous_response_id="resp_0", input=None)
    assert [m["content"] for m in chat["messages"]] == ["a", "b"]


def test_user_messages_survive_a_compaction() -> None:
    """Other items are in the summary, whatever fields they have."""
    items = [
        {"role": "user", "content": "a"},
        _message_item("assistant", "b", part="output_text"),
        _CALL | {"role": 5},
        _message_item("user", "c"),
    ]
    raw = [msgspec.Raw(msgspec.json.encode(item)) for item in items]
    found = [json.loads(bytes(message)) for message in user_messages(raw, "x")]
    assert [message["content"][0]["text"] for message in found] == ["a", "c"]
    assert len({message["id"] for message in found}) == 2


def test_earlier_summary_is_a_user_message() -> None:
    """A compacted conversation continues from its summary."""
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": encode_summary("it was so")}
    (message,) = _messages(item)
    assert message["role"] == "user"
    assert message["content"].endswith("it was so")


@pytest.mark.parametrize(
    "data",
    [
        "data:text/markdown;base64," + base64.b64encode("# Süß".encode()).decode(),
        base64.b64encode("# Süß".encode()).decode(),
        "data:text/plain,%23%20S%C3%BC%C3%9F",
    ],
)
def test_text_file_is_text(data: str) -> None:
    """Its name comes first."""
    part = {"type": "input_file", "filename": "a.md", "file_data": data}
    (message,) = _messages({"role": "user", "content": [part]})
    assert message["content"] == "a.md\n\n# Süß"


def test_image_file_is_an_image() -> None:
    """Some clients send every attachment as a file."""
    part = {"type": "input_file", "filename": "a.png", "file_data": "data:image/png;base64,AAAA"}
    (message,) = _messages({"role": "user", "content": [part]})
    assert message["content"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("data:application/pdf;base64,JVBERi0xLjcKJeLjz9M=", "application/pdf"),
        ("AAAA", "not UTF-8 text"),
        ("???", "base64"),
        ("data:text/plain," + "%41" * 30_000, "must be base64"),
    ],
)
def test_other_files_are_rejected_with_their_type(data: str, reason: str) -> None:
    """A model can't read them, and a PDF must not be lost in silence."""
    part = {"type": "input_file", "filename": "a.pdf", "file_data": data}
    with pytest.raises(BadRequest, match=reason):
        _messages({"role": "user", "content": [part]})


def test_request_without_a_model_is_rejected() -> None:
    """A body without a model is a MissingModel error."""
    with pytest.raises(MissingModel):
        parse_request(b'{"input":"hi"}')


@pytest.mark.parametrize("item_type", ["local_shell_call_output", "shell_call", "robot_call"])
def test_items_with_content_for_the_model_are_not_dropped(item_type: str) -> None:
    """Results of tools that the client ran, and unknown items, are rejected by their type."""
    with pytest.raises(BadRequest, match=item_type):
        _messages(_message_item("user", "hi"), {"type": item_type, "call_id": "c"})


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
    with contextlib.suppress(BadRequest, ItemNotFound):
        request = parse_request(json.dumps(body).encode())
        items = resolve_input(request, _Stored())
        new_response(request, response_id="resp_1", created=7)
        to_chat(request, items, model="engine", traits=traits, stream=True)


def _response(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    body = json.dumps(
        {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    ).encode()
    response = to_response(body, response_in_progress(), now=lambda: 9.5, **more)
    found: dict[str, Any] = json.loads(msgspec.json.encode(response))
    openai.types.responses.Response.model_validate(found)  # the SDK requires every field
    return found


def test_response_items_are_ordered() -> None:
    """Reasoning, message and calls are items; namespaces are restored; usage is reported."""
    call = {"id": "c1", "function": {"name": "ns__fn", "arguments": '{"x":1}'}}
    found = _response(
        {"content": "hi", "reasoning_content": "hm", "tool_calls": [call]},
        tool_names={"ns__fn": ToolName("fn", "ns")},
    )
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call"]
    assert found["output"][1]["content"][0]["text"] == "hi"
    assert (found["output"][2]["namespace"], found["output"][2]["name"]) == ("ns", "fn")
    assert found["status"] == "completed"
    assert found["usage"]["total_tokens"] == 5
    assert (found["model"], found["created_at"], found["completed_at"]) == ("gpt-x", 7, 9)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input":"*** Begin Patch"}', "*** Begin Patch"),
        ("*** Begin Patch", "*** Begin Patch"),
        ('{"input":"*** Beg', '{"input":"*** Beg'),
        ('{"patch":"x"}', '{"patch":"x"}'),
    ],
)
def test_custom_tool_call_has_its_input_as_text(arguments: str, text: str) -> None:
    """Arguments of another form are passed on as they are, so that nothing the model wrote is lost."""
    call = {"id": "c1", "function": {"name": "apply_patch", "arguments": arguments}}
    names = {"apply_patch": ToolName("apply_patch", custom=True)}
    (item,) = _response({"tool_calls": [call]}, tool_names=names)["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", text)


def test_estimate_takes_the_place_of_missing_usage() -> None:
    """The output is not known."""
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})
    response = to_response(body.encode(), response_in_progress(), now=lambda: 9, prompt_tokens=42)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.total_tokens) == (42, 42)


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
