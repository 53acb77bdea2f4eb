"""Model names, and request parameters per model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.config.catalogue import ModelConfig
from cortex_server.dialects.param_rules import ParamRules, apply_rules
from cortex_server.dialects.stream.text import ModelNameRewriter
from cortex_server.fleet.model_aliases import ModelAliases

_NAMES = ModelAliases(
    [
        ModelConfig(id="Qwen/Qwen3-32B", harness="x", aliases=("big", "claude-*")),
        ModelConfig(id="small", harness="x", aliases=("claude-haiku-*",)),
        ModelConfig(id="claude-real", harness="x"),
    ]
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B"),
        ("big", "Qwen/Qwen3-32B"),
        ("claude-opus-5-5", "Qwen/Qwen3-32B"),
        ("claude-haiku-4-5", "small"),
        ("claude-real", "claude-real"),
    ],
)
def test_names_resolve_in_order(name: str, expected: str) -> None:
    """Ids come before aliases, aliases before patterns, long patterns before short ones."""
    assert _NAMES.resolve(name) == expected


@pytest.mark.parametrize("name", ["Qwen/Qwen3-33B", "Claude-x", ""])
def test_an_unknown_name_is_not_found(name: str) -> None:
    """Unknown names resolve to nothing."""
    assert _NAMES.resolve(name) is None


def test_the_nearest_name_is_a_hint() -> None:
    """A mistyped name gets the right one as a hint."""
    assert "'Qwen/Qwen3-32B'" in _NAMES.not_found_error("Qwen/Qwen3-33B").hints[0]


@given(st.text(max_size=8), st.text(max_size=8), st.text())
def test_only_the_model_field_is_echoed(engine: str, client: str, content: str) -> None:
    """The engine's name is replaced where it is the model, never inside a text."""
    first = {"model": engine, "content": content}
    second = {"content": json.dumps(first), "model": engine}
    echo = ModelNameRewriter(client)
    for found in (first, second):
        out = echo(json.dumps(found, ensure_ascii=False).encode())
        assert json.loads(out) == found | {"model": client}


def test_without_a_client_name_nothing_is_changed() -> None:
    """ModelNameRewriter(None) changes nothing."""
    assert ModelNameRewriter(None)(b'{"model":"x"}') == b'{"model":"x"}'


@pytest.mark.parametrize(
    ("body", "rules", "expected"),
    [
        ({"a": 1}, ParamRules(defaults={"temperature": 0.2}), {"a": 1, "temperature": 0.2}),
        ({"temperature": 0}, ParamRules(defaults={"temperature": 0.2}), {"temperature": 0}),
        ({"temperature": None}, ParamRules(defaults={"temperature": 0.2}), {"temperature": 0.2}),
        ({"temperature": 1}, ParamRules(overrides={"temperature": 0.2}), {"temperature": 0.2}),
        ({"user": "x", "a": 1}, ParamRules(strip=frozenset({"user"})), {"a": 1}),
        ({"max_tokens": 32000}, ParamRules(clamp_max_tokens=True), {"max_tokens": 8092}),
        (
            {"max_completion_tokens": 32000},
            ParamRules(clamp_max_tokens=True),
            {"max_completion_tokens": 8092},
        ),
        ({"max_tokens": 100}, ParamRules(clamp_max_tokens=True), {"max_tokens": 100}),
        ({"max_tokens": None}, ParamRules(clamp_max_tokens=True), {"max_tokens": None}),
        ({}, ParamRules(clamp_max_tokens=True), {}),
    ],
)
def test_rules_change_what_they_name(
    body: dict[str, Any], rules: ParamRules, expected: dict[str, Any]
) -> None:
    """Defaults fill gaps, overrides replace, strips remove, and the clamp leaves space for the prompt."""
    assert (
        json.loads(apply_rules(json.dumps(body).encode(), rules, context=8192, prompt_tokens=100))
        == expected
    )


def test_empty_rules_do_not_change_the_body() -> None:
    """Without rules the body stays the same to the byte."""
    assert apply_rules(b'{ "a" : 1 }', ParamRules()) == b'{ "a" : 1 }'


def test_a_prompt_beyond_the_context_still_leaves_a_token() -> None:
    """The engine should report that the prompt is too long, not that max_tokens is negative."""
    out = apply_rules(
        b'{"max_tokens":9}', ParamRules(clamp_max_tokens=True), context=10, prompt_tokens=99
    )
    assert json.loads(out) == {"max_tokens": 1}


def test_only_visible_names_are_suggested() -> None:
    """A key that is limited to some models learns no other model's name."""
    error = _NAMES.not_found_error("smal", ("smart",), lambda name: name == "small")
    assert error.details["nearest"] == ("small",)


@pytest.mark.parametrize("name", ["m" * 5_000_000, "é" * 100_000, "qwen/" * 90], ids=range(3))
def test_a_name_of_any_length_is_an_error_of_bounded_size(name: str) -> None:
    """Neither is a long name compared with others, nor is it repeated."""
    error = _NAMES.not_found_error(name, [f"{n}-{'model' * 20}" for n in range(2000)])
    assert len(error.message) < 2000
    assert error.details["nearest"] == ()
