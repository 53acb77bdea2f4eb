"""What `cortex doctor` says about who can use which listener."""

from __future__ import annotations

import pytest

from cortex_cli.doctor.access import access_findings
from cortex_cli.doctor.findings import Verdict
from cortex_common.schema.fleet import FleetSnapshot, NodeView
from cortex_common.schema.keys import KeyView, Scope

LOOPBACK = {"gateway.listen": "127.0.0.1:8000", "gateway.metrics_listen": "127.0.0.1:9100"}
OPEN = {"gateway.listen": "0.0.0.0:8000", "gateway.metrics_listen": None}


def key(*scopes: Scope, expired: bool = False) -> KeyView:
    """Return a key with these scopes."""
    return KeyView.model_validate(
        {"name": "k", "scopes": scopes, "origin": "config", "expired": expired, "in_flight": 0}
    )


def found(
    settings: dict[str, object], *keys: KeyView, nodes: tuple[NodeView, ...] = ()
) -> dict[str, tuple[Verdict, str]]:
    """Return verdict and text by check."""
    fleet = FleetSnapshot(version=1, at=0.0, nodes=nodes)
    return {f.check: (f.verdict, f.message) for f in access_findings(settings, keys, fleet)}


def test_a_new_gateway_serves_its_own_host():
    """Nothing is wrong, and the text says who needs no key."""
    report = found(LOOPBACK)
    assert {verdict for verdict, _ in report.values()} == {Verdict.OK}
    assert "programs on the gateway's host" in report["access to inference"][1]
    assert "root and the gateway's user" in report["access to operations"][1]
    assert "no one" in report["access to operations"][1]


@pytest.mark.parametrize(
    ("settings", "keys", "check", "words"),
    [
        (OPEN, [key(Scope.INFER)], "access to inference", "unencrypted"),
        (OPEN, [key(Scope.OPERATOR)], "access to operations", "unencrypted"),
        (LOOPBACK | {"gateway.insecure": True}, [], "access to metrics", "without a key"),
        (LOOPBACK | {"gateway.allowed_origins": ["*"]}, [], "access of web pages", "every page"),
    ],
)
def test_what_is_more_open_than_it_should_be_is_a_warning(settings, keys, check, words):
    """With a text that says to whom."""
    verdict, text = found(settings, *keys)[check]
    assert verdict is Verdict.WARNING
    assert words in text


def test_an_expired_operator_key_opens_nothing():
    """The operator API is for the host only then."""
    assert "no one" in found(LOOPBACK, key(Scope.OPERATOR, expired=True))["access to operations"][1]


def test_engines_without_keys_and_tokens_without_tls_are_warnings():
    """By node; a node on loopback needs no TLS."""
    report = found(
        LOOPBACK,
        nodes=(
            NodeView("here", "http://127.0.0.1:9090", keyless_harnesses=("comfyui",)),
            NodeView("far", "http://10.0.0.7:9090"),
            NodeView("safe", "https://10.0.0.8:9090"),
            NodeView("cloud", "https://api.example.org", upstream=True),
        ),
    )
    assert {
        check: verdict for check, (verdict, _) in report.items() if "of" in check or "node" in check
    } == {
        "access to node here": Verdict.OK,
        "access to engines of here": Verdict.WARNING,
        "access to node far": Verdict.WARNING,
        "access to node safe": Verdict.OK,
    }
