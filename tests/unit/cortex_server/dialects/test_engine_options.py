"""Requests, worded for the engine that gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex_common.schema.engine_traits import (
    DEEPSEEK,
    LLAMACPP,
    MISTRALRS,
    MOONSHOT,
    OPENAI,
    VLLM,
    EngineTraits,
    detect_engine,
)
from cortex_server.dialects.anthropic import request as anthropic
from cortex_server.dialects.engine_options import for_openai_reasoning_model
from cortex_server.dialects.responses import request as responses
from cortex_server.dialects.responses.history import Input
from cortex_server.dialects.responses.parameters import parse_request


def _from_messages(
    traits: EngineTraits, model: str = "m", **fields: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    body = {
        "model": "x",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}],
    } | fields
    request = anthropic.parse_request(json.dumps(body).encode())
    translated = anthropic.to_chat(request, model=model, traits=traits, stream=False)
    return json.loads(translated.body), translated.dropped


def _from_responses(traits: EngineTraits, model: str = "m", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    request = parse_request(json.dumps({"model": "x", "input": messages} | fields).encode())
    assert isinstance(request.input, list)
    items = Input((), request.input)
    translated = responses.to_chat(request, items, model=model, traits=traits, stream=False)
    found: dict[str, Any] = json.loads(translated.body)
    return found


_TOOL_TURN = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "let me look", "signature": "s"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok"}]},
]
_WITHOUT_THINKING = [
    _TOOL_TURN[0],
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]},
    _TOOL_TURN[2],
]


@pytest.mark.parametrize("traits", [DEEPSEEK, MOONSHOT])
def test_deepseek_and_kimi_get_reasoning_back(traits: EngineTraits) -> None:
    """They reject a turn with tool calls whose reasoning is missing, also if the client did not keep it."""
    turn = _from_messages(traits, messages=_TOOL_TURN)[0]["messages"][1]
    assert turn["reasoning_content"] == "let me look"
    turn = _from_messages(traits, messages=_WITHOUT_THINKING)[0]["messages"][1]
    assert turn["reasoning_content"]


def test_openai_gets_no_reasoning_back() -> None:
    """The field is not part of its API."""
    turn = _from_messages(OPENAI, messages=_TOOL_TURN)[0]["messages"][1]
    assert "reasoning_content" not in turn


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, {"type": "enabled"}),
        ({"thinking": {"type": "disabled"}}, {"type": "disabled"}),
        ({"output_config": {"effort": "high"}}, {"type": "enabled"}),
        ({}, None),
    ],
)
def test_deepseek_and_kimi_have_a_switch_for_thinking(
    fields: dict[str, Any], expected: dict[str, str] | None
) -> None:
    """Neither an effort nor a budget is sent to them."""
    body, _ = _from_messages(DEEPSEEK, **fields)
    assert body.get("thinking") == expected
    assert not body.keys() & {"reasoning_effort", "thinking_budget_tokens", "enable_thinking"}


@pytest.mark.parametrize(
    ("traits", "accepted"),
    [(OPENAI, False), (DEEPSEEK, False), (LLAMACPP, True), (MISTRALRS, True), (VLLM, True)],
)
def test_top_k_is_sent_only_to_engines_that_accept_it(traits: EngineTraits, accepted: bool) -> None:
    """OpenAI rejects a request with it; that it was left out is logged."""
    body, dropped = _from_messages(traits, top_k=40)
    assert ("top_k" in body) is accepted
    assert dropped == (() if accepted else ("top_k: the engine rejects it",))


@pytest.mark.parametrize(
    "model", ["o3", "o4-mini", "gpt-5", "gpt-5.2-codex", "openai/gpt-5-mini", "gpt-6"]
)
def test_openai_reasoning_models_get_their_parameters(model: str) -> None:
    """They reject max_tokens and every temperature but their own."""
    body, dropped = _from_messages(OPENAI, model, temperature=0.2, top_p=0.9)
    assert body["max_completion_tokens"] == 100
    assert not body.keys() & {"max_tokens", "temperature", "top_p"}
    assert len(dropped) == 2
    assert _from_responses(OPENAI, model, max_output_tokens=7)["max_completion_tokens"] == 7


@pytest.mark.parametrize(
    ("model", "traits"),
    [
        ("gpt-4o", OPENAI),
        ("gpt-5-chat-latest", OPENAI),
        ("gpt-oss-120b", OPENAI),
        ("olmo-3", OPENAI),
        ("o3", VLLM),
    ],
)
def test_other_models_get_max_tokens(model: str, traits: EngineTraits) -> None:
    """Servers that don't know max_completion_tokens would ignore the limit."""
    body, _ = _from_messages(traits, model, temperature=0.2)
    assert (body["max_tokens"], body["temperature"]) == (100, 0.2)


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("o3", "max", "high"),
        ("o3", "none", "low"),
        ("o3", "minimal", "low"),
        ("gpt-5", "minimal", "minimal"),
        ("gpt-5", "none", "minimal"),
        ("gpt-5-codex", "xhigh", "high"),
        ("gpt-5.1", "none", "none"),
        ("gpt-5.1", "minimal", "none"),
        ("gpt-5.2", "max", "xhigh"),
        ("gpt-5.2", "medium", "medium"),
        ("gpt-5.2", "tremendous", None),
        ("gpt-4o", "tremendous", "tremendous"),
    ],
)
def test_efforts_are_those_that_the_model_knows(
    model: str, effort: str, expected: str | None
) -> None:
    """The closest one, because a request with another is rejected."""
    body = _from_responses(OPENAI, model, reasoning={"effort": effort})
    assert body.get("reasoning_effort") == expected


@pytest.mark.parametrize(
    ("owners", "models", "engine"),
    [
        (["vllm"], ["a"], "vllm"),
        (["llamacpp"], ["a"], "llamacpp"),
        (["sglang"], ["a"], "sglang"),
        (["cortex", "cortex"], ["a"], "cortex"),
        (["deepseek"], ["deepseek-chat"], "deepseek"),
        (["moonshot"], ["kimi-k2"], "moonshot"),
        (["local"], ["default", "a"], "mistralrs"),
        (["local"], ["a"], "openai"),
        (["openai", "system"], ["gpt-5"], "openai"),
        (["vllm", "deepseek"], ["a"], "openai"),
        (["auto"], ["a"], "openai"),
        ([], [], "openai"),
    ],
)
def test_engines_are_detected_by_who_owns_their_models(
    owners: list[str], models: list[str], engine: str
) -> None:
    """A listing with models of several owners is that of a router."""
    assert detect_engine(owners, models) == engine


def test_the_detail_of_an_image_is_kept() -> None:
    """It decides how many tokens the image costs, and what the model sees of it."""
    part = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"}
    body = _from_responses(OPENAI, input=[{"role": "user", "content": [part]}])
    assert body["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    ]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ({"max_tokens": 5, "top_k": 3}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "minimal"}),
        ({"reasoning_effort": "turbo"}, {}),
        ({"reasoning_effort": None, "seed": 1}, {"reasoning_effort": None, "seed": 1}),
        ({"reasoning_effort": 7}, {"reasoning_effort": 7}),
        ({"temperature": 0.2}, {"temperature": 0.2}),
    ],
)
def test_requests_of_openai_clients_are_worded_for_reasoning_models(sent: dict, received: dict):
    """GPT-5 gets max_completion_tokens, no top_k and an effort that it knows; other fields are left to OpenAI."""
    body = json.dumps({"model": "gpt-5", **sent}).encode()
    assert json.loads(for_openai_reasoning_model(body, "gpt-5")) == {"model": "gpt-5", **received}
