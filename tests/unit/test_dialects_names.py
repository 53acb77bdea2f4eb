"""Model names, and parameters per model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, MalformedBody, MissingModel, ModelNotFound
from cortex_server.dialects.names import Echo, Names, asked, with_model
from cortex_server.dialects.params import ParamRules, apply_rules

_MODELS = {"Qwen/Qwen3-32B": 1, "small": 2, "claude-real": 3}
_NAMES = Names(
    {
        "big": "Qwen/Qwen3-32B",
        "claude-*": "Qwen/Qwen3-32B",
        "claude-haiku-*": "small",
        "gone": "nowhere",
    }
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
def test_a_name_means_a_model(name: str, expected: str) -> None:
    """Ids come before aliases, aliases before patterns, long patterns before short ones."""
    assert _NAMES.resolve(name, _MODELS) == expected


@pytest.mark.parametrize("name", ["Qwen/Qwen3-33B", "gone", "Claude-x"])
def test_a_name_that_means_nothing_is_not_found(name: str) -> None:
    """Unknown names, and aliases of models that are not there, are a 404."""
    with pytest.raises(ModelNotFound) as caught:
        _NAMES.resolve(name, _MODELS)
    assert caught.value.status == 404


def test_the_nearest_name_is_a_hint() -> None:
    """A mistyped name gets the right one as a hint."""
    with pytest.raises(ModelNotFound) as caught:
        _NAMES.resolve("Qwen/Qwen3-33B", _MODELS)
    assert caught.value.hints[0] == "Did you mean 'Qwen/Qwen3-32B'?"


def test_model_and_stream_are_read_from_a_body() -> None:
    """The two fields that routing needs."""
    assert asked(b'{"messages":[{"model":"x"}],"model":"m","stream":true}') == ("m", True)
    assert asked(b'{"model":"m"}') == ("m", False)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", MalformedBody),
        (b"[]", MalformedBody),
        (b"{}", MissingModel),
        (b'{"model":""}', MissingModel),
        (b'{"model":null}', MissingModel),
        (b'{"model":7}', BadRequest),
        (b'{"model":"m","stream":"yes"}', BadRequest),
    ],
)
def test_a_body_without_a_model_is_refused(body: bytes, kind: type[BadRequest]) -> None:
    """Each with its own error."""
    with pytest.raises(kind):
        asked(body)


@given(st.text(), st.text(), st.text(), st.booleans())
def test_the_model_of_a_body_is_exchanged(old: str, new: str, content: str, spaced: bool) -> None:
    """Everything else keeps its meaning, also where the old name stands in a message."""
    body = {"prompt": content + old, "model": old, "nested": {"model": old, "n": 1.0}}
    data = json.dumps(body, separators=(", ", ": ") if spaced else (",", ":")).encode()
    assert json.loads(with_model(data, new)) == body | {"model": new}


def test_a_body_is_exchanged_without_being_written_anew() -> None:
    """When the name stands only once the other bytes stay as they are."""
    assert with_model(b'{ "a":1.00,"model" : "m" }', "n") == b'{ "a":1.00,"model" : "n" }'


@given(st.text(max_size=8), st.text(max_size=8), st.text())
def test_only_the_model_field_is_echoed(engine: str, client: str, content: str) -> None:
    """The engine's name is replaced where it is the model, never inside a text."""
    first = {"model": engine, "content": content}
    second = {"content": json.dumps(first), "model": engine}
    echo = Echo(client)
    for found in (first, second):
        out = echo(json.dumps(found, ensure_ascii=False).encode())
        assert json.loads(out) == found | {"model": client}


def test_without_a_client_name_nothing_is_changed() -> None:
    """Echo(None) passes everything."""
    assert Echo(None)(b'{"model":"x"}') == b'{"model":"x"}'


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
    """Defaults fill gaps, overrides replace, strips remove, the clamp leaves room for the prompt."""
    assert (
        json.loads(apply_rules(json.dumps(body).encode(), rules, context=8192, prompt_tokens=100))
        == expected
    )


def test_idle_rules_do_not_touch_the_body() -> None:
    """Without rules even the spaces stay."""
    assert apply_rules(b'{ "a" : 1 }', ParamRules()) == b'{ "a" : 1 }'


def test_a_prompt_beyond_the_context_still_leaves_a_token() -> None:
    """The engine is to say that the prompt is too long, not that max_tokens is negative."""
    out = apply_rules(
        b'{"max_tokens":9}', ParamRules(clamp_max_tokens=True), context=10, prompt_tokens=99
    )
    assert json.loads(out) == {"max_tokens": 1}
