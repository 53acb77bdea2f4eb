"""Which scope opens which route: the one table that is enforced, and that docs/reference/scopes.md is made from."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.config.access import Scope

_OPEN: frozenset[Scope] = frozenset()
_INFER = frozenset({Scope.INFER})
_OPERATE = frozenset({Scope.OPERATOR})
_EITHER = frozenset({Scope.INFER, Scope.OPERATOR})
_READ = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Rule:
    """What opens the paths that begin in one way.

    Attributes:
        prefix: of the path.
        scopes: one of them is needed; none for what is open to all.
        what: the routes, for people.
        methods: that it is about; empty for all.
        whole: `prefix` is the whole path.
    """

    prefix: str
    scopes: frozenset[Scope]
    what: str
    methods: frozenset[str] = frozenset()
    whole: bool = False

    def covers(self, method: str, path: str) -> bool:
        """Whether it is about this request."""
        fits = path == self.prefix if self.whole else path.startswith(self.prefix)
        return fits and (not self.methods or method in self.methods)


RULES = (
    Rule("/health", _OPEN, "whether the gateway lives", whole=True),
    Rule("/ready", _OPEN, "whether it can serve", whole=True),
    Rule("/", _OPEN, "a sign of life, which Anthropic's clients ask for", _READ, whole=True),
    Rule("/api/hello", _OPEN, "the same", _READ, whole=True),
    Rule("/metrics", frozenset({Scope.METRICS}), "the metrics, on their own listener", whole=True),
    Rule("/v1/models", _EITHER, "which models there are", _READ),
    Rule("/v1/", _INFER, "inference"),
    Rule("/rerank", _INFER, "the same under the path that some tools ask", whole=True),
    Rule("/v2/rerank", _INFER, "the same for Cohere's clients", whole=True),
    Rule("/tokenize", _INFER, "counting tokens", whole=True),
    Rule("/detokenize", _INFER, "and the way back", whole=True),
    Rule("/openapi.json", _EITHER, "the description of this API", whole=True),
    Rule("/docs", _EITHER, "the same, to be read"),
    Rule("/operator/", _OPERATE, "the operator API"),
    Rule("/", _OPERATE, "whatever else there is"),
)
"""The first that covers a request counts; the last covers everything, so that nothing is open by omission."""

OTHERWISE = RULES[-1]
"""The rule of paths that none of the others knows."""


def rule_for(method: str, path: str) -> Rule:
    """What opens a route."""
    return next(rule for rule in RULES if rule.covers(method, path))


def matrix() -> str:
    """The table as Markdown."""
    lines = [
        "| routes | what they are | without a key | infer | operator | metrics |",
        "|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        methods = f"{'/'.join(sorted(rule.methods))} " if rule.methods else ""
        path = rule.prefix if rule.whole else f"{rule.prefix}*"
        marks = [
            _mark(not rule.scopes),
            *(_mark(not rule.scopes or s in rule.scopes) for s in Scope),
        ]
        lines.append(f"| `{methods}{path}` | {rule.what} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def _mark(opened: bool) -> str:
    return "yes" if opened else "–"
