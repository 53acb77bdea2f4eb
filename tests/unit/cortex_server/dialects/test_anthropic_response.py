"""Unstreamed responses, errors, models and token counts in Anthropic's format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.lazy_import import anthropic

from cortex_common.errors import (
    AuthenticationFailed,
    BadRequest,
    BodyTooLarge,
    Busy,
    CortexError,
    DoesNotFit,
    ModelLoading,
    ModelNotFound,
    NotSupported,
    PermissionDenied,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_server.dialects.anthropic.errors import error_response
from cortex_server.dialects.anthropic.models import ServedModel, encode_model, encode_model_page
from cortex_server.dialects.anthropic.request import parse_request
from cortex_server.dialects.anthropic.response import to_message
from cortex_server.dialects.engine_errors import error_from_event, error_from_response
from cortex_server.dialects.openai_errors import engine_error_response
from cortex_server.dialects.tokens import encode_count, estimate, parse_count


def _completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    choice |= more.pop("choice", {})
    return json.dumps({"id": "x", "choices": [choice]} | more, ensure_ascii=False).encode()


def _message(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    call_ids = more.pop("call_ids", ())
    only_first = more.pop("only_first_call", False)
    asked = {k: more.pop(k) for k in ("shows_thinking", "stop_sequences") if k in more}
    body = to_message(
        _completion(message, finish, **more),
        message_id="msg_1",
        model="claude-x",
        **asked,
        call_ids=call_ids,
        only_first_call=only_first,
    )
    found: dict[str, Any] = json.loads(body)
    anthropic.types.Message.model_validate(found)  # the SDK requires every field
    return found


def _call(arguments: Any, call_id: str | None = "a") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_message_has_every_field() -> None:
    """Id, type, role, the client's model name, and a null stop_sequence are always present."""
    assert _message({"content": "hi"}) == {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "output_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        ({"content": "t", "reasoning_content": "r"}, ["thinking", "text"]),
        ({"content": "t", "reasoning": "r"}, ["thinking", "text"]),
        ({"content": None, "tool_calls": [_call("{}")]}, ["tool_use"]),
        (
            {"content": "", "reasoning_content": "r", "tool_calls": [_call("{}")]},
            ["thinking", "tool_use"],
        ),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ["text"]),
        ({"content": None, "refusal": "no"}, ["text"]),
        ({"content": ""}, ["text"]),
        ({}, ["text"]),
    ],
)
def test_blocks_are_ordered_and_not_empty(message: dict[str, Any], kinds: list[str]) -> None:
    """Thinking, text, calls; one empty text block only if there is nothing else."""
    assert [block["type"] for block in _message(message)["content"]] == kinds


def test_thinking_is_for_those_who_asked_for_it() -> None:
    """Others get the answer only."""
    message = {"content": "t", "reasoning_content": "r"}
    found = _message(message, shows_thinking=False)["content"]
    assert found == [{"type": "text", "text": "t"}]


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "omitted"}, True),
    ],
)
def test_client_asks_for_thinking(thinking: dict[str, Any] | None, shown: bool) -> None:
    """Claude Code asks with "adaptive"."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "thinking": thinking}
    assert parse_request(json.dumps(body).encode()).shows_thinking is shown


def test_estimate_takes_the_place_of_missing_usage() -> None:
    """Clients show the size of the prompt from it."""
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})
    found = json.loads(to_message(body.encode(), message_id="m", model="m", prompt_tokens=42))
    assert found["usage"]["input_tokens"] == 42


def test_thinking_has_a_signature() -> None:
    """SDKs require one; clients send it back unchanged."""
    assert _message({"reasoning": "r"})["content"][0]["signature"] == "cortex"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"x": "é"}', {"x": "é"}),
        ({"x": 1}, {"x": 1}),
        ("", {}),
        (None, {}),
        ('{"x": "cut o', {"arguments": '{"x": "cut o'}),
        ("Paris", {"arguments": "Paris"}),
        ("[1]", {"arguments": "[1]"}),
    ],
)
def test_tool_input_is_always_an_object(arguments: Any, expected: dict[str, Any]) -> None:
    """Whatever the model wrote as arguments, the client gets an object."""
    assert _message({"tool_calls": [_call(arguments)]})["content"][0]["input"] == expected


@pytest.mark.parametrize(
    ("finish", "message", "choice", "expected"),
    [
        ("stop", {"content": "a"}, {}, ("end_turn", None)),
        ("eos", {"content": "a"}, {}, ("end_turn", None)),
        (None, {"content": "a"}, {}, ("end_turn", None)),
        ("tool_calls", {"tool_calls": [_call("{}")]}, {}, ("tool_use", None)),
        ("stop", {"tool_calls": [_call("{}")]}, {}, ("tool_use", None)),
        ("length", {"content": "a"}, {}, ("max_tokens", None)),
        ("length", {"tool_calls": [_call('{"')]}, {}, ("max_tokens", None)),
        ("content_filter", {"content": "a"}, {}, ("refusal", None)),
        ("stop", {"refusal": "no"}, {}, ("refusal", None)),
        ("stop", {"content": "a"}, {"stop_reason": "END"}, ("stop_sequence", "END")),
        ("stop", {"content": "a"}, {"stopping_word": "END"}, ("stop_sequence", "END")),
        ("stop", {"content": "a"}, {"matched_stop": "END"}, ("stop_sequence", "END")),
        ("stop_sequence", {"content": "a"}, {}, ("stop_sequence", "END")),
        ("stop", {"content": "a"}, {"stop_reason": "<|im_end|>"}, ("end_turn", None)),
        ("stop", {"content": "a"}, {"stop_reason": 128009}, ("end_turn", None)),
        ("stop", {"tool_calls": [_call("{}")]}, {"stop_reason": "END"}, ("tool_use", None)),
    ],
)
def test_stop_reason(
    finish: str | None,
    message: dict[str, Any],
    choice: dict[str, Any],
    expected: tuple[str, str | None],
) -> None:
    """Length takes precedence over calls, calls over stop; a stop string is reported if it can be known."""
    found = _message(message, finish, choice=choice, stop_sequences=["END"])
    assert (found["stop_reason"], found["stop_sequence"]) == expected


def test_usage_separates_cached_tokens() -> None:
    """Input and cached tokens add up to the engine's prompt tokens."""
    counted = {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    found = _message({"content": "a"}, usage=counted)["usage"]
    assert (found["input_tokens"], found["cache_read_input_tokens"], found["output_tokens"]) == (
        2,
        8,
        3,
    )


def test_call_ids_are_unique_in_the_conversation() -> None:
    """Missing, repeated and already used ids are replaced."""
    calls = [_call("{}", None), _call("{}", "a"), _call("{}", "a"), _call("{}", "old")]
    ids = [block["id"] for block in _message({"tool_calls": calls}, call_ids={"old"})["content"]]
    assert len({*ids, "old"}) == 5
    assert ids[1] == "a"
    assert _message({"tool_calls": calls}, only_first_call=True)["content"][0]["type"] == "tool_use"
    assert len(_message({"tool_calls": calls}, only_first_call=True)["content"]) == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", UpstreamFailed),
        (b"{}", UpstreamFailed),
        (b'{"choices":[]}', UpstreamFailed),
        (b'{"error":{"message":"boom","code":503}}', Unavailable),
    ],
)
def test_body_without_a_completion_is_an_engine_error(body: bytes, kind: type[CortexError]) -> None:
    """A body without a chat completion is not the client's mistake."""
    with pytest.raises(kind):
        to_message(body, message_id="m", model="m")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("x"), 400, "invalid_request_error"),
        (AuthenticationFailed("x"), 401, "authentication_error"),
        (PermissionDenied("x"), 403, "permission_error"),
        (ModelNotFound("x"), 404, "not_found_error"),
        (BodyTooLarge("x"), 413, "request_too_large"),
        (Busy("x"), 429, "rate_limit_error"),
        (CortexError("x"), 500, "api_error"),
        (NotSupported("x"), 400, "invalid_request_error"),
        (UpstreamFailed("x"), 502, "api_error"),
        (ModelLoading("x"), 529, "overloaded_error"),
        (UpstreamTimeout("x"), 504, "timeout_error"),
        (DoesNotFit("x"), 507, "api_error"),
        (error_from_response(402, b'{"error":"x"}'), 402, "billing_error"),
    ],
)
def test_errors_have_anthropic_status_and_type(error: CortexError, status: int, kind: str) -> None:
    """Each error has the status and type that make clients react correctly."""
    found_status, body = error_response(error, "req_1")
    assert found_status == status
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }


def test_hints_are_part_of_the_message() -> None:
    """Anthropic's format has no field for hints."""
    hints = ("Did you mean 'y'?", "See the list")
    _, body = error_response(ModelNotFound("There is no model 'x'", hints=hints))
    message = json.loads(body)["error"]["message"]
    assert message == "There is no model 'x'. Did you mean 'y'? See the list"


_LLAMA_OVERFLOW = {
    "error": {
        "code": 400,
        "message": "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 8192,
    }
}
_VLLM_OVERFLOW = {
    "error": {
        "message": "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "type": "BadRequestError",
        "code": 400,
    }
}


@pytest.mark.parametrize("body", [_LLAMA_OVERFLOW, _VLLM_OVERFLOW], ids=["llama.cpp", "vLLM"])
def test_context_overflow_message_makes_clients_compact(body: dict[str, Any]) -> None:
    """Claude Code compacts on this message and on no other."""
    error = error_from_response(400, json.dumps(body).encode())
    assert isinstance(error, PromptTooLong)
    status, answer = error_response(error)
    assert status == 400
    assert (
        json.loads(answer)["error"]["message"] == "prompt is too long: 9000 tokens > 8192 maximum"
    )
    assert isinstance(error_from_event(json.dumps(body).encode()), PromptTooLong)


def test_context_overflow_without_prompt_size_uses_the_estimate() -> None:
    """mistral.rs does not report the size of the prompt; the estimate is used, but always above the limit."""
    message = (
        "Prompt sequence length is greater than 4096, perhaps consider using `truncate_sequence`?"
    )
    error = error_from_event(
        json.dumps({"error": {"message": message, "type": "server_error"}}).encode()
    )
    for estimated, expected_tokens in ((9000, 9000), (0, 4097)):
        _, body = error_response(error, prompt_tokens=estimated)
        message = json.loads(body)["error"]["message"]
        assert message == f"prompt is too long: {expected_tokens} tokens > 4096 maximum"


def test_context_overflow_without_numbers() -> None:
    """If the engine reports no sizes, its own message follows."""
    error = error_from_response(500, b'{"message":"prompt is too long"}')
    assert json.loads(error_response(error)[1])["error"]["message"].startswith(
        "prompt is too long: "
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error":{"message":"bad","type":"t","code":400}}', BadRequest, "bad"),
        (422, b'{"message":"bad"}', BadRequest, "bad"),
        (400, b'{"error":"bad"}', BadRequest, "bad"),
        (400, b'{"object":"error","message":"bad","code":400}', BadRequest, "bad"),
        (422, b'{"detail":"bad"}', BadRequest, "bad"),
        (422, b'{"detail":[{"loc":["x"]}]}', BadRequest, '[{"loc":["x"]}]'),
        (400, b"bad thing", BadRequest, "bad thing"),
        (502, b"<html>nginx</html>", UpstreamFailed, "The engine answered 502 without a reason"),
        (500, b"", UpstreamFailed, "The engine answered 500 without a reason"),
        (403, b'{"error":{"message":"no"}}', UpstreamFailed, "no"),
        (404, b'{"error":{"message":"no"}}', CortexError, "no"),
        (429, b'{"error":{"message":"slow"}}', Busy, "slow"),
        (503, b'{"error":{"message":"Loading model"}}', Unavailable, "Loading model"),
        (504, b"", UpstreamTimeout, "The engine answered 504 without a reason"),
        (501, b'{"error":{"message":"no"}}', NotSupported, "no"),
    ],
)
def test_every_error_format_is_parsed(
    status: int, body: bytes, kind: type[CortexError], message: str
) -> None:
    """The message is found wherever the engine puts it, and the status decides the class."""
    error = error_from_response(status, body)
    assert isinstance(error, kind)
    assert error.message == message
    assert error.details["upstream_status"] == status


def test_retry_after_is_kept() -> None:
    """The engine's retry-after is kept with the error."""
    assert error_from_response(429, b"{}", 3.0).retry_after == 3.0


@given(st.integers(400, 599), st.binary(max_size=60))
def test_parsing_an_error_never_fails(status: int, body: bytes) -> None:
    """Any body gives an error with a message."""
    assert error_from_response(status, body).message
    assert error_from_event(body).message


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b'{"message":"boom"}', (500, "upstream_failed", "boom")),
        (
            500,
            b'{"message":"prompt is too long: 9000 > 8192"}',
            (400, "context_length_exceeded", "9000"),
        ),
        (
            500,
            b'{"error":{"code":500,"message":"image input is not supported - hint: ...","type":"server_error"}}',
            (400, "invalid_request", "image input"),
        ),
        (
            500,
            b'{"error":{"code":500,"message":"Failed to parse tools: Unsupported tool type","type":"server_error"}}',
            (400, "invalid_request", "tool type"),
        ),
        (404, b"not here", (404, "not_found", "not here")),
        (403, b'{"detail":"no"}', (403, "upstream_failed", "no")),
    ],
)
def test_engine_errors_are_converted_to_openai_format(
    status: int, body: bytes, expected: tuple[int, str, str]
) -> None:
    """The client gets an error object with message and code, not marked as the gateway's."""
    found_status, answer = engine_error_response(status, body)
    error = json.loads(answer)["error"]
    assert (found_status, error["code"]) == expected[:2]
    assert expected[2] in error["message"]
    assert "src" not in error


_MODELS = [
    ServedModel(f"m{n}", created=1_700_000_000, context=8192 if n else None) for n in range(5)
]


def test_model_satisfies_both_sdks() -> None:
    """An entry has the fields of Anthropic's ModelInfo and of OpenAI's Model."""
    found = json.loads(encode_model(_MODELS[1]))
    info = anthropic.types.ModelInfo.model_validate(found)
    assert (info.id, info.type, info.max_input_tokens) == ("m1", "model", 8192)
    assert found["created_at"] == "2023-11-14T22:13:20Z"
    assert (found["object"], found["created"]) == ("model", 1_700_000_000)


@pytest.mark.parametrize(
    ("asked", "ids", "more"),
    [
        ({}, ["m0", "m1", "m2", "m3", "m4"], False),
        ({"limit": 2}, ["m0", "m1"], True),
        ({"limit": 2, "after_id": "m1"}, ["m2", "m3"], True),
        ({"after_id": "m3"}, ["m4"], False),
        ({"limit": 2, "before_id": "m3"}, ["m1", "m2"], True),
        ({"after_id": "unknown"}, [], False),
        ({"before_id": "unknown"}, [], False),
    ],
)
def test_models_are_paginated(asked: dict[str, Any], ids: list[str], more: bool) -> None:
    """limit, after_id and before_id choose a page, which says whether there are more."""
    page = json.loads(encode_model_page(_MODELS, **asked))
    assert [model["id"] for model in page["data"]] == ids
    assert page["has_more"] is more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_estimate_counts_text_tools_and_images() -> None:
    """Text counts one token per four bytes, an image 1000, whatever its size."""
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 100_000}}
    text = {"messages": [{"role": "user", "content": "x" * 400}]}
    both = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 400}, image]}]}
    tools = text | {"tools": [{"type": "function", "function": {"name": "f" * 400}}]}
    assert estimate(json.dumps(text).encode()) == 104
    assert estimate(json.dumps(both).encode()) == 1104
    assert estimate(json.dumps(tools).encode()) > 204
    assert estimate(b'{"prompt":"xxxxxx"}') == 2
    assert estimate(b"no json!") == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"input_tokens":7}', 7),
        (b'{"object":"response.input_tokens","input_tokens":7}', 7),
        (b'{"count":7,"tokens":null}', 7),
        (b'{"tokens":[1,2,3]}', 3),
        (b'{"error":{}}', None),
        (b"nothing", None),
    ],
)
def test_engine_counts_are_parsed(body: bytes, expected: int | None) -> None:
    """The count is found in the responses of the engines' token routes."""
    assert parse_count(body) == expected


def test_count_has_one_field() -> None:
    """count_tokens returns input_tokens."""
    assert encode_count(7) == b'{"input_tokens":7}'
