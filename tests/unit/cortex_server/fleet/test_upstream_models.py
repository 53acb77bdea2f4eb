"""The model list of an external upstream."""

from __future__ import annotations

import json

import pytest

from cortex_common.config.gateway import UpstreamEntry
from cortex_common.errors import UpstreamFailed
from cortex_common.schema.instances import MAX_NODE_MODELS
from cortex_server.fleet.upstream_watcher import instances, parse_model_list

ENTRY = UpstreamEntry(name="cloud", base_url="https://api.example.com", prefix="cloud/")


def listing(*models: object) -> bytes:
    """Return the response to GET /v1/models."""
    return json.dumps({"data": models}).encode()


def test_names_that_cannot_be_shown_or_sent_are_left_out():
    """Control and bidi characters, empty and very long names."""
    names = ["ok", "", "a\r\nb", "a\x1b[2J", "\u202eevil", "x" * 513, "ok"]
    listed = parse_model_list(listing(*({"id": name} for name in names)), "/v1/models")
    assert [m.id for m in listed] == ["ok"]


@pytest.mark.parametrize("context", [0, -1, 10**25, 1e300, 2**63], ids=range(5))
def test_a_context_without_meaning_is_unknown(context: float):
    """Some servers report 0, -1 or the largest integer."""
    listed = parse_model_list(listing({"id": "a", "max_model_len": context}), "/v1/models")
    assert instances(ENTRY, listed)[0].context is None


def test_a_list_of_too_many_models_is_an_error_that_says_what_to_do():
    """With `models` in the configuration the same list can be used."""
    listed = parse_model_list(listing(*({"id": f"m{n}"} for n in range(5000))), "/v1/models")
    with pytest.raises(UpstreamFailed, match=f"more than {MAX_NODE_MODELS}: name those"):
        instances(ENTRY, listed)
    some = ENTRY.model_copy(update={"models": ("m1?",)})
    assert len(instances(some, listed)) == 10


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b'{"data":[{}]}', b"[" * 100_000], ids=range(6)
)
def test_anything_else_is_an_error(body: bytes):
    """Whatever the server sends, the watcher keeps running."""
    with pytest.raises(UpstreamFailed):
        parse_model_list(body, "/v1/models")
