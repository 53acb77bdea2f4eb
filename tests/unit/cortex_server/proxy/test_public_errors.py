"""Clients learn nothing of the inside of the fleet."""

from __future__ import annotations

import json

import pytest

from cortex_common.config.access import KeyEntry
from cortex_common.errors import (
    Busy,
    DoesNotFit,
    LoadFailed,
    ModelLoading,
    NoHealthyNode,
    Unavailable,
    UpstreamFailed,
    envelope,
)
from cortex_common.schema.keys import Scope
from cortex_http.pool import ConnectError, ConnectTimeout
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.keys import Keyring, hash_of
from cortex_server.proxy.errors import connect_failed
from cortex_server.proxy.public_errors import public_error, sees_internals

INSIDE = "GPU-1 /srv/models/x.gguf http://10.0.0.5:8100 secret-model --api-key s3cret"


@pytest.mark.parametrize(
    "kind", [LoadFailed, DoesNotFit, NoHealthyNode, Unavailable, UpstreamFailed]
)
def test_the_reason_of_a_failed_load_is_for_operators(kind: type[LoadFailed]):
    """The code and when to retry stay; the request's id leads an operator to the reason."""
    error = kind(INSIDE, hints=[INSIDE], retry_after=3.0, details={"refusals": [INSIDE]})
    shown = public_error(error, "m", "req-1")
    text = json.dumps(envelope(shown))
    assert not [word for word in INSIDE.split() if word in text]
    assert (shown.code, shown.status, shown.retry_after) == (error.code, error.status, 3.0)
    assert "'m'" in shown.message
    assert "cortex why req-1" in shown.hints[0]


@pytest.mark.parametrize("kind", [Busy, ModelLoading])
def test_what_clients_can_act_on_is_unchanged(kind: type[Busy]):
    """How full a queue is, and how far a load."""
    error = kind("busy", details={"loading": {"eta_s": 3}})
    assert public_error(error, "m", "req-1") is error


@pytest.mark.parametrize("kind", [ConnectError, ConnectTimeout])
def test_the_address_of_an_engine_is_not_in_errors(kind: type[ConnectError]):
    """Its node's name is in response headers anyway."""
    error, _ = connect_failed(kind("10.0.0.5:8100", "('10.0.0.5', 8100)"), "gpu1", 5.0)
    assert "gpu1" in error.message
    assert "10.0.0.5" not in error.message


def test_only_operators_see_internals():
    """A key with that scope, or a newcomer on this host before there are keys."""
    keys = [
        KeyEntry(name=scope.value, hash=hash_of(scope.value), scopes=(scope,)) for scope in Scope
    ]
    open_access, closed, insecure = (AccessControl(Keyring()) for _ in range(3))
    closed.keyring.replace(keys, (), 0.0)
    insecure.insecure = True
    for access, expected in ((open_access, True), (closed, False), (insecure, False)):
        assert sees_internals(access.keyring.anonymous, access) is expected
    by_name = {key.name: sees_internals(key, closed) for key in closed.keyring.keys}
    assert by_name == {"infer": False, "operator": True, "metrics": False}
