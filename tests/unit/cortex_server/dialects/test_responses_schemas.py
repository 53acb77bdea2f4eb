"""Responses and events of the Responses API match the published schemas."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from dialects_kit import (
    call_delta,
    chunk,
    parse_events,
    response_in_progress,
    run_translator,
    sse_stream,
    usage_chunk,
)
from published_schemas import (
    open_responses,
    open_responses_events,
    openai_document,
    violations,
)

from cortex_common.errors import UpstreamFailed
from cortex_server.dialects.chat import ToolName
from cortex_server.dialects.responses.response import to_response
from cortex_server.dialects.responses.stream import ResponsesStreamWriter

_ANSWER = sse_stream(
    chunk({"reasoning_content": "Let me see."}),
    chunk({"content": "It is süß."}),
    chunk(call_delta(0, '{"city":"Rome"}', call_id="a", name="f")),
    chunk(finish="stop"),
    usage_chunk(),
)
_CUT = sse_stream(chunk({"content": "It is"}), chunk(finish="length"), usage_chunk())
_FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
_REQUESTS: list[dict[str, Any]] = [
    {},
    {
        "instructions": "Be brief.",
        "tools": [_FUNCTION, {"type": "function", "name": "g"}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
        "temperature": 0,
        "top_p": 0.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_output_tokens": 99,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "truncation": "auto",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "user": "u",
    },
]
_NULL_AT_OPENAI = {"user", "safety_identifier", "prompt_cache_key", "usage", "description"}
"""OpenAI's document does not allow null in these, which its servers send."""


def _stream(engine: bytes, parameters: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    writer = ResponsesStreamWriter(response_in_progress(**parameters), now=lambda: 9)
    *events, _ = parse_events(run_translator(writer.feed, writer.end, engine))
    return [(event.name, json.loads(event.data)) for event in events]


def _failed_stream() -> list[tuple[str, dict[str, Any]]]:
    writer = ResponsesStreamWriter(response_in_progress(), now=lambda: 9)
    out = writer.feed(sse_stream(chunk({"content": "It"}), done=False))
    *events, _ = parse_events(out + writer.fail(UpstreamFailed("the engine broke off")))
    return [(event.name, json.loads(event.data)) for event in events]


def _custom_call_stream() -> list[tuple[str, dict[str, Any]]]:
    names = {"f": ToolName("f", custom=True)}
    writer = ResponsesStreamWriter(response_in_progress(), tool_names=names, now=lambda: 9)
    call = chunk(call_delta(0, '{"input":"*** Begin Patch"}', call_id="a", name="f"))
    engine = sse_stream(call, chunk(finish="tool_calls"), usage_chunk())
    *events, _ = parse_events(run_translator(writer.feed, writer.end, engine))
    assert events[-1].name == "response.completed"
    return [(event.name, json.loads(event.data)) for event in events]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or key not in _NULL_AT_OPENAI
        }
    return value


@pytest.mark.parametrize("parameters", _REQUESTS)
@pytest.mark.parametrize("engine", [_ANSWER, _CUT])
def test_events_match_open_responses(engine: bytes, parameters: dict[str, Any]) -> None:
    """Every event has a known type and all required fields."""
    schemas = open_responses_events()
    for name, event in _stream(engine, parameters):
        assert violations(schemas[name], event) == []


def test_events_of_a_failure_match_open_responses() -> None:
    """The `error` event and `response.failed` too."""
    schemas = open_responses_events()
    events = _failed_stream()
    assert [name for name, _ in events[-2:]] == ["error", "response.failed"]
    for name, event in events:
        assert violations(schemas[name], event) == []


@pytest.mark.parametrize("parameters", _REQUESTS)
def test_whole_response_matches_open_responses(parameters: dict[str, Any]) -> None:
    """It has every required field."""
    choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    response = to_response(body, response_in_progress(**parameters), now=lambda: 9)
    document = json.loads(msgspec.json.encode(response))
    assert violations(open_responses("ResponseResource"), document) == []


def test_events_match_the_document_of_openai() -> None:
    """Also with all parameters, and in a failure."""
    schema = openai_document("ResponseStreamEvent")
    for _, event in [*_stream(_ANSWER, _REQUESTS[1]), *_custom_call_stream(), *_failed_stream()]:
        assert violations(schema, _without_nulls(event)) == []


def test_parameters_are_echoed() -> None:
    """Each as it was asked for; functions with all their fields, and no tool that the model does not get."""
    asked = _REQUESTS[1]
    _, event = _stream(_ANSWER, asked)[-1]
    response = event["response"]
    same = asked.keys() - {"tools", "text", "service_tier"}
    assert {key: response[key] for key in same} == {key: asked[key] for key in same}
    assert [tool["name"] for tool in response["tools"]] == ["f", "g"]
    assert response["tools"][1] == {
        "type": "function",
        "name": "g",
        "description": None,
        "parameters": None,
        "strict": None,
    }
    assert response["text"]["verbosity"] == "low"
    assert response["text"]["format"]["schema"] == {}
    assert response["service_tier"] == "default"
