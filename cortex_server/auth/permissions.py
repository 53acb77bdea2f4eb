"""The scopes that each route requires: the table that is enforced, and the source of docs/reference/scopes.md."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.schema.keys import Scope
from cortex_common.schema.operation import OPERATOR_PREFIX

_PUBLIC: frozenset[Scope] = frozenset()
_INFER = frozenset({Scope.INFER})
_OPERATOR = frozenset({Scope.OPERATOR})
_INFER_OR_OPERATOR = frozenset({Scope.INFER, Scope.OPERATOR})
_READ = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Rule:
    """The scopes that a group of routes requires.

    Attributes:
        prefix: beginning of the path.
        scopes: any one of them is sufficient; empty for public routes.
        description: what the routes are, for the documentation.
        methods: HTTP methods that the rule covers; empty for all.
        exact: whether `prefix` is the whole path.
    """

    prefix: str
    scopes: frozenset[Scope]
    description: str
    methods: frozenset[str] = frozenset()
    exact: bool = False

    def covers(self, method: str, path: str) -> bool:
        """Return whether the rule applies to a request."""
        matches = path == self.prefix if self.exact else path.startswith(self.prefix)
        return matches and (not self.methods or method in self.methods)


RULES = (
    Rule("/health", _PUBLIC, "liveness probe", exact=True),
    Rule("/ready", _PUBLIC, "readiness probe", exact=True),
    Rule("/", _PUBLIC, "reachability check of Anthropic's clients", exact=True),
    Rule("/api/hello", _PUBLIC, "reachability check of Anthropic's clients", exact=True),
    Rule(
        "/metrics",
        frozenset({Scope.METRICS}),
        "Prometheus metrics, on their own listener",
        exact=True,
    ),
    Rule("/v1/models", _INFER_OR_OPERATOR, "list of models", _READ),
    Rule("/v1/", _INFER, "inference"),
    Rule("/rerank", _INFER, "reranking, under the path that some clients use", exact=True),
    Rule("/v2/rerank", _INFER, "reranking, for Cohere's clients", exact=True),
    Rule("/tokenize", _INFER, "text to tokens", exact=True),
    Rule("/detokenize", _INFER, "tokens to text", exact=True),
    Rule("/openapi.json", _INFER_OR_OPERATOR, "OpenAPI description of this API", exact=True),
    Rule(f"{OPERATOR_PREFIX}/", _OPERATOR, "operator API"),
    Rule("/", _OPERATOR, "everything else"),
)
"""The first rule that covers a request applies. The last one covers every request, so that no route is public by
omission."""

DEFAULT_RULE = RULES[-1]
"""The rule for paths that no other rule covers."""


def rule_for(method: str, path: str) -> Rule:
    """Return the rule that applies to a request."""
    return next(rule for rule in RULES if rule.covers(method, path))


def matrix() -> str:
    """Return the rules as a Markdown table."""
    lines = [
        "| routes | description | without a key | infer | operator | metrics |",
        "|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        methods = f"{'/'.join(sorted(rule.methods))} " if rule.methods else ""
        path = rule.prefix if rule.exact else f"{rule.prefix}*"
        cells = [
            _cell(not rule.scopes),
            *(_cell(not rule.scopes or scope in rule.scopes) for scope in Scope),
        ]
        lines.append(f"| `{methods}{path}` | {rule.description} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(allowed: bool) -> str:
    return "yes" if allowed else "–"
