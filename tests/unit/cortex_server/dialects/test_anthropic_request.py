"""Translation of Anthropic requests to chat requests."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from dialects_kit import with_junk
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, MalformedBody, MissingModel
from cortex_common.schema.engine_traits import LLAMACPP, MISTRALRS, OPENAI, EngineTraits
from cortex_server.dialects.anthropic.request import parse_request, to_chat
from cortex_server.dialects.chat import TranslatedRequest

_EFFORT_ONLY = EngineTraits(effort_names=MISTRALRS.effort_names)


def _translate(
    traits: EngineTraits = OPENAI, *, stream: bool = False, **fields: Any
) -> TranslatedRequest:
    body = {
        "model": "claude-x",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}],
    } | fields
    request = parse_request(json.dumps({k: v for k, v in body.items() if v is not ...}).encode())
    return to_chat(request, model="engine", traits=traits, stream=stream)


def _chat(traits: EngineTraits = OPENAI, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_translate(traits, stream=stream, **fields).body)
    return found


def _user_messages(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages for a user turn with these blocks."""
    found: list[dict[str, Any]] = _chat(messages=[{"role": "user", "content": list(blocks)}])[
        "messages"
    ]
    return found


_PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
_PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
_USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": "é"}}
_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
}
_TOOL = {"name": "f", "description": "does f", "input_schema": _SCHEMA}
_TOOLS = [_TOOL, _TOOL | {"name": "g"}]


def _tool_result(content: Any = ..., **more: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": "t1", "content": content} | more
    return {k: v for k, v in block.items() if v is not ...}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"model": "engine", "max_tokens": 100}),
        ({"max_tokens": ...}, {"max_tokens": None}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_sequences": []}, {"stop": None}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3},
            {"temperature": 0, "top_p": 0.5, "top_k": None},
        ),
        ({"temperature": None, "top_p": None}, {"temperature": None, "top_p": None}),
        ({"metadata": {"user_id": "{}"}}, {"metadata": None, "user": None}),
        (
            {"service_tier": "auto", "container": "c", "context_management": {}},
            {"service_tier": None},
        ),
        (
            {"cache_control": {"type": "ephemeral"}, "unheard_of": 1},
            {"cache_control": None, "unheard_of": None},
        ),
        ({"tools": []}, {"tools": None}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": None}),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            {"reasoning_effort": None, "thinking": None},
        ),
        (
            {"thinking": {"type": "between_tools"}},
            {"reasoning_effort": None, "enable_thinking": None},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {}},
                }
            },
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
    """A streamed request requests usage; an unstreamed one has no stream fields."""
    assert _chat(stream=True)["stream_options"] == {"include_usage": True}
    assert _chat(stream=True)["stream"] is True
    assert not {"stream", "stream_options"} & _chat(stream=False).keys()


@pytest.mark.parametrize(
    ("traits", "thinking", "effort", "expected"),
    [
        (
            LLAMACPP,
            {"type": "enabled", "budget_tokens": 2048},
            None,
            {"thinking_budget_tokens": 2048},
        ),
        (LLAMACPP, {"type": "disabled"}, "high", {"reasoning_effort": "none"}),
        (LLAMACPP, {"type": "adaptive"}, "max", {"reasoning_effort": "max"}),
        (MISTRALRS, {"type": "enabled", "budget_tokens": 2048}, None, {"enable_thinking": True}),
        (
            MISTRALRS,
            {"type": "enabled", "budget_tokens": 2048},
            "high",
            {"reasoning_effort": "high"},
        ),
        (MISTRALRS, {"type": "disabled"}, "high", {"enable_thinking": False}),
        (MISTRALRS, None, "max", {"reasoning_effort": "xhigh"}),
        (OPENAI, {"type": "enabled", "budget_tokens": 2048}, None, {"reasoning_effort": "low"}),
        (OPENAI, {"type": "enabled", "budget_tokens": 32000}, None, {"reasoning_effort": "high"}),
        (_EFFORT_ONLY, {"type": "disabled"}, "high", {"reasoning_effort": "off"}),
        (
            _EFFORT_ONLY,
            {"type": "enabled", "budget_tokens": 8192},
            None,
            {"reasoning_effort": "medium"},
        ),
        (OPENAI, {"type": "disabled"}, None, {"reasoning_effort": "none"}),
        (OPENAI, None, "xhigh", {"reasoning_effort": "xhigh"}),
        (OPENAI, None, None, {}),
    ],
)
def test_thinking_depends_on_engine_traits(
    traits: EngineTraits,
    thinking: dict[str, Any] | None,
    effort: str | None,
    expected: dict[str, Any],
) -> None:
    """An engine gets one parameter that it knows, never two that contradict each other."""
    chat = _chat(traits, thinking=thinking, output_config={"effort": effort})
    fields = {"reasoning_effort", "enable_thinking", "thinking_budget_tokens", "thinking"}
    assert {key: chat[key] for key in fields & chat.keys()} == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("", None),
        ("be kind", "be kind"),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}],
            "a\n\nb",
        ),
        (
            [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=12345;"},
                {"type": "text", "text": "a"},
            ],
            "a",
        ),
    ],
)
def test_system_prompt_is_one_message(system: Any, expected: str | None) -> None:
    """System text and blocks become one string, without the billing header, which changes with each request."""
    first = _chat(system=system)["messages"][0]
    assert first == (
        {"role": "user", "content": "hi"}
        if expected is None
        else {"role": "system", "content": expected}
    )


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (
            [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}],
            "a\nb",
        ),
        (
            [{"type": "text", "text": "a"}, _PNG, {"type": "text", "text": "b"}],
            [{"type": "text", "text": "a"}, _PNG_PART, {"type": "text", "text": "b"}],
        ),
        (
            [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}],
            [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
        ),
        (
            [
                {
                    "type": "document",
                    "title": "T",
                    "source": {"type": "text", "media_type": "text/plain", "data": "D"},
                }
            ],
            "T\n\nD",
        ),
        (
            [
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": "D"}]},
                }
            ],
            "D",
        ),
        ([{"type": "document", "source": {"type": "content", "content": "D"}}], "D"),
        (
            [
                {
                    "type": "search_result",
                    "source": "s",
                    "title": "t",
                    "content": [{"type": "text", "text": "x"}],
                }
            ],
            "t\ns\nx",
        ),
    ],
)
def test_user_blocks_become_parts_in_order(blocks: list[dict[str, Any]], expected: Any) -> None:
    """Only text becomes one string; with images, the parts keep their order; documents become text."""
    assert _user_messages(*blocks) == [{"role": "user", "content": expected}]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (_tool_result("out"), "out"),
        (_tool_result([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "a\nb"),
        (_tool_result(), ""),
        (_tool_result([]), ""),
        (_tool_result(None), ""),
        (_tool_result("no such file", is_error=True), "Error: no such file"),
        (_tool_result("error: no such file", is_error=True), "error: no such file"),
        (
            _tool_result([{"type": "tool_reference", "tool_name": "WebFetch"}]),
            "Tool loaded: WebFetch",
        ),
        (_tool_result([{"type": "unknown_block", "x": 1}]), '{"type": "unknown_block", "x": 1}'),
        (
            _tool_result(
                [{"type": "search_result", "source": "s", "title": "t", "content": [{"text": "x"}]}]
            ),
            "t\ns\nx",
        ),
    ],
)
def test_tool_results_become_tool_messages(result: dict[str, Any], expected: str) -> None:
    """Text, failures, references and unknown blocks all become text."""
    assert _user_messages(result) == [{"role": "tool", "content": expected, "tool_call_id": "t1"}]


def test_tool_results_come_before_images_and_text() -> None:
    """Tool messages come first, then the images of all results, then the user's text."""
    found = _user_messages(
        {"type": "text", "text": "see"},
        _tool_result([{"type": "text", "text": "a"}, _PNG]),
        _tool_result([_PNG]) | {"tool_use_id": "t2"},
    )
    assert [message["role"] for message in found] == ["tool", "tool", "user"]
    assert [message["content"] for message in found[:2]] == ["a", "(image)"]
    assert found[2]["content"] == [_PNG_PART, _PNG_PART, {"type": "text", "text": "see"}]


@pytest.mark.parametrize(
    ("traits", "last", "continued"),
    [
        (LLAMACPP, {"role": "assistant", "content": "{"}, True),
        (OPENAI, {"role": "assistant", "content": "{"}, False),
        (LLAMACPP, {"role": "assistant", "content": [_USE]}, False),
        (LLAMACPP, {"role": "user", "content": "{"}, False),
    ],
)
def test_prefilled_response_is_continued(
    traits: EngineTraits, last: dict[str, Any], continued: bool
) -> None:
    """An engine that can continue a message is asked to."""
    found = _chat(traits, messages=[{"role": "user", "content": "hi"}, last])
    assert found.get("continue_final_message", False) is continued
    assert ("add_generation_prompt" in found) is continued


def test_empty_messages_are_rejected() -> None:
    """Engines answer an empty conversation with noise, or with an error about another field."""
    with pytest.raises(BadRequest):
        _chat(messages=[{"role": "user", "content": ""}])


def test_assistant_turn_keeps_text_calls_and_unicode() -> None:
    """Texts are joined without a separator, and calls keep the JSON text of their input."""
    turn = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b"},
            _USE,
            _USE | {"id": "t2", "input": {}},
        ],
    }
    found = _chat(messages=[{"role": "user", "content": "hi"}, turn])["messages"][1]
    assert found["content"] == "ab"
    assert [json.loads(c["function"]["arguments"]) for c in found["tool_calls"]] == [{"x": "é"}, {}]
    assert [c["id"] for c in found["tool_calls"]] == ["t1", "t2"]


def test_earlier_thinking_is_sent_only_to_engines_that_accept_it() -> None:
    """Thinking of earlier turns is kept for llama.cpp and dropped for mistral.rs; signatures are dropped."""
    turn = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
        ],
    }
    messages = [{"role": "user", "content": "hi"}, turn]
    assert _chat(LLAMACPP, messages=messages)["messages"][1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
    }
    assert _chat(MISTRALRS, messages=messages)["messages"][1] == {
        "role": "assistant",
        "content": "",
    }
    assert _translate(messages=messages).dropped == ("messages.1.content.1: redacted_thinking",)


def test_later_system_message_becomes_a_reminder() -> None:
    """A system message in the conversation joins the adjacent user turn, so the prompt prefix is stable."""
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "system", "content": [{"type": "text", "text": "be brief", "cache_control": {}}]},
        {"role": "assistant", "content": "ok"},
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "go"},
    ]
    assert _chat(system="s", messages=messages)["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi\n<system-reminder>\nbe brief\n</system-reminder>"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "<system-reminder>\nbe kind\n</system-reminder>\ngo"},
    ]


def test_system_message_between_call_and_result_is_deferred() -> None:
    """A call is followed by its results; the reminder comes after them."""
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [_USE]},
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [_tool_result("out"), {"type": "text", "text": "go"}]},
    ]
    found = _chat(messages=messages)["messages"]
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "user"]
    assert found[3]["content"] == "<system-reminder>\nbe kind\n</system-reminder>\ngo"


def test_tools_can_change_in_a_conversation() -> None:
    """An added definition joins the tools, a removed tool leaves them, and a reference changes nothing."""
    change = [
        {
            "type": "tool_addition",
            "tool": {"type": "tool_definition", "definition": _TOOL | {"name": "h"}},
        },
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}},
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}},
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "system", "content": change}]
    chat = _chat(tools=_TOOLS, messages=messages)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["g", "h"]
    assert len(chat["messages"]) == 1


def test_server_tool_blocks_are_dropped() -> None:
    """Blocks of tools that Anthropic runs are left out and recorded for the log."""
    blocks = [
        {"type": "server_tool_use", "id": "s"},
        {"type": "web_search_tool_result", "tool_use_id": "s"},
    ]
    found = _translate(
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}]
    )
    assert [line.split(": ")[1] for line in found.dropped] == [
        "server_tool_use",
        "web_search_tool_result",
    ]


def test_tool_schema_is_verbatim() -> None:
    """The schema is forwarded unchanged; caching, deferral and examples are not forwarded."""
    decorated = _TOOL | {
        "cache_control": {},
        "defer_loading": True,
        "input_examples": [{}],
        "strict": True,
    }
    assert _chat(tools=[decorated | {"type": "custom"}])["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "does f",
                "parameters": _SCHEMA,
                "strict": True,
            },
        }
    ]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {}}, {"type": "object", "properties": {}}),
        ({}, {"type": "object"}),
        ({"type": ["object", "null"]}, {"type": ["object", "null"]}),
    ],
)
def test_schema_without_a_type_gets_object(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Engines require a type, which some clients omit."""
    assert (
        _chat(tools=[{"name": "f", "input_schema": schema}])["tools"][0]["function"]["parameters"]
        == expected
    )


@pytest.mark.parametrize("kind", ["bash_20250124", "text_editor_20250728", "memory_20250818"])
def test_client_tools_get_their_public_schema(kind: str) -> None:
    """A tool that Anthropic's models know by its type becomes a function with a schema."""
    function = _chat(tools=[{"type": kind, "name": "t"}])["tools"][0]["function"]
    assert function["name"] == "t"
    assert "command" in function["parameters"]["properties"]


@pytest.mark.parametrize(
    "kind",
    [
        "web_search_20250305",
        "code_execution_20250522",
        "tool_search_tool_regex_20251119",
        "mcp_toolset",
    ],
)
def test_server_tools_are_dropped(kind: str) -> None:
    """If none are left, neither tools nor a choice are sent; a choice of a dropped tool becomes auto."""
    server = {"type": kind, "name": "s"}
    alone = _translate(tools=[server], tool_choice={"type": "any"})
    assert not {"tools", "tool_choice"} & json.loads(alone.body).keys()
    assert kind in alone.dropped[0]
    beside = _chat(tools=[server, _TOOL], tool_choice={"type": "tool", "name": "s"})
    assert [tool["function"]["name"] for tool in beside["tools"]] == ["f"]
    assert beside["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("traits", "choice", "expected", "tools"),
    [
        (OPENAI, {"type": "auto"}, "auto", 2),
        (OPENAI, {"type": "any"}, "required", 2),
        (OPENAI, {"type": "none"}, "none", 2),
        (
            OPENAI,
            {"type": "tool", "name": "g"},
            {"type": "function", "function": {"name": "g"}},
            2,
        ),
        (
            MISTRALRS,
            {"type": "tool", "name": "g"},
            {"type": "function", "function": {"name": "g"}},
            2,
        ),
        (LLAMACPP, {"type": "tool", "name": "g"}, "required", 1),
    ],
)
def test_tool_choice_depends_on_engine_traits(
    traits: EngineTraits, choice: dict[str, Any], expected: Any, tools: int
) -> None:
    """llama.cpp, which ignores a name, gets only the named tool with "required"."""
    chat = _chat(traits, tools=_TOOLS, tool_choice=choice)
    assert chat["tool_choice"] == expected
    assert len(chat["tools"]) == tools


def test_disabled_parallel_calls_depend_on_engine_traits() -> None:
    """Engines with the parameter get it; for others, only the first call is returned."""
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    with_switch = _translate(LLAMACPP, tools=_TOOLS, tool_choice=choice)
    without = _translate(MISTRALRS, tools=_TOOLS, tool_choice=choice)
    assert json.loads(with_switch.body)["parallel_tool_calls"] is False
    assert not with_switch.only_first_call
    assert "parallel_tool_calls" not in json.loads(without.body)
    assert without.only_first_call


def test_ids_of_earlier_calls_are_collected() -> None:
    """The response must not reuse them."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [_USE]}]
    assert _translate(messages=messages).call_ids == {"t1"}


def test_user_id_is_parsed_for_affinity() -> None:
    """The user id is available for routing, although it is not forwarded."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "metadata": {"user_id": "u"},
    }
    assert parse_request(json.dumps(body).encode()).user == "u"


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"{", MalformedBody, None),
        (b"[]", MalformedBody, None),
        (b"", MalformedBody, None),
        (b'{"messages":[]}', MissingModel, "model"),
        (b'{"model":"m"}', BadRequest, None),
        (b'{"model":"m","messages":[]}', BadRequest, "messages"),
        (b'{"model":"m","messages":{}}', BadRequest, "messages"),
        (b'{"model":"","messages":[{"role":"user","content":"x"}]}', BadRequest, "model"),
        (
            b'{"model":"m","messages":[{"role":"robot","content":"x"}]}',
            BadRequest,
            "messages.0.role",
        ),
        (
            b'{"model":"m","messages":[{"role":"user","content":7}]}',
            BadRequest,
            "messages.0.content",
        ),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}',
            BadRequest,
            "max_tokens",
        ),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"tool_choice":{"type":"maybe"}}',
            BadRequest,
            "tool_choice.type",
        ),
    ],
)
def test_invalid_request_is_rejected_by_field(
    body: bytes, kind: type[BadRequest], param: str | None
) -> None:
    """A client's mistake is a 400 that names the field."""
    with pytest.raises(kind) as caught:
        parse_request(body)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("block", "place", "words"),
    [
        ({"type": "hologram"}, "messages.0.content.1", "hologram"),
        ({"text": "no type"}, "messages.0.content.1", "no type"),
        (
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "A"},
            },
            "messages.0.content.1",
            "application/pdf",
        ),
        (
            {"type": "document", "source": {"type": "url", "url": "u"}},
            "messages.0.content.1",
            "url",
        ),
        (
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            "messages.0.content.1.source",
            "file",
        ),
        ({"type": "text"}, "messages.0.content.1", "text"),
        ({"type": "tool_result"}, "messages.0.content.1", "tool_use_id"),
    ],
)
def test_unsupported_block_is_rejected_by_position(
    block: dict[str, Any], place: str, words: str
) -> None:
    """Nothing is dropped silently: the error names the type and the position of the block."""
    with pytest.raises(BadRequest, match=words) as caught:
        _user_messages({"type": "text", "text": "x"}, block)
    assert caught.value.param == place


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "quantum_20300101", "name": "q"}, "quantum_20300101"),
        ({"name": "f"}, "input_schema"),
        ({"input_schema": {}}, "no name"),
        ({"name": "f", "input_schema": []}, "input_schema"),
    ],
)
def test_unsupported_tool_is_rejected(tool: dict[str, Any], words: str) -> None:
    """The error names a tool without a schema and without a known type."""
    with pytest.raises(BadRequest, match=words):
        _chat(tools=[tool])


def test_tool_input_that_is_not_an_object_is_rejected() -> None:
    """The input of a tool call must be an object."""
    turn = {"role": "assistant", "content": [_USE | {"input": [1]}]}
    with pytest.raises(BadRequest, match="input"):
        _chat(messages=[turn])


_EVERYTHING = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, _PNG]},
        {
            "role": "system",
            "content": [{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "g"}}],
        },
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, _USE],
        },
        {
            "role": "user",
            "content": [_tool_result([{"type": "text", "text": "b"}, _PNG], is_error=True)],
        },
    ],
    "tools": [_TOOL, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {}}},
    "metadata": {"user_id": "u"},
}


@given(with_junk(_EVERYTHING), st.sampled_from([OPENAI, LLAMACPP, MISTRALRS]))
def test_junk_in_a_request_is_a_client_error(body: Any, traits: EngineTraits) -> None:
    """A field of a wrong type is a 400, or has no effect; it never breaks the gateway."""
    with contextlib.suppress(BadRequest):
        to_chat(
            parse_request(json.dumps(body).encode()), model="engine", traits=traits, stream=True
        )


def test_invalid_utf8_is_rejected() -> None:
    """A split character in a tool's input, which is not decoded, is also found."""
    body = json.dumps(_EVERYTHING, ensure_ascii=False).encode().replace("é".encode(), b"\xc3")
    with pytest.raises(MalformedBody, match="UTF-8"):
        parse_request(body)
