"""The scopes that routes require."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex_common.schema.keys import Scope
from cortex_server.auth.access_control import INFER
from cortex_server.auth.permissions import RULES, matrix, rule_for
from cortex_server.proxy.routes import ROUTES

OPERATOR = frozenset({Scope.OPERATOR})
DOCS = Path(__file__).parents[4] / "docs" / "reference" / "scopes.md"


def test_the_last_rule_covers_everything():
    """A route that no other rule covers requires the operator scope."""
    assert rule_for("POST", "/anything/../new").scopes == OPERATOR
    assert RULES[-1].prefix == "/"


@pytest.mark.parametrize("path", [route.path for route in ROUTES.values()])
def test_inference_routes_require_the_infer_scope(path):
    """Each inference route requires the infer scope and accepts no other."""
    assert rule_for("POST", path).scopes == INFER


@pytest.mark.parametrize("path", ["/healthz", "/health/", "/readyx", "//health", "/metrics/x"])
def test_similar_paths_are_not_public(path):
    """Only the exact paths of the probes and the metrics have rules of their own."""
    assert rule_for("GET", path).scopes == OPERATOR


def test_the_scopes_page_contains_the_table():
    """docs/reference/scopes.md contains the rules that are enforced (update it if this fails)."""
    assert matrix() in DOCS.read_text(encoding="utf-8")
