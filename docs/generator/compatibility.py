"""The compatibility table: the clients and servers that tests show to work, from the markers of these tests."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from generator.text import page, table

_TESTS = Path(__file__).parents[2] / "tests"

FEATURES = {
    "chat": "streamed and unstreamed chat completions",
    "responses": "the Responses API",
    "messages": "the Anthropic Messages API",
    "tools": "tool calls and their results",
    "failures": "an engine that fails in the middle of a stream, or rejects a prompt, is an error with a reason, and "
    "half an answer is never taken for a whole one",
    "stored responses": "`previous_response_id`, or references to items of earlier responses",
    "websocket": "the WebSocket of the Responses API",
    "embeddings": "embeddings",
    "models": "the list of models",
}
"""Columns, with what they mean."""

SERVERS = ("llama.cpp", "mistral.rs", "mistral.rs, embedded", "vLLM", "SGLang")
"""Names that are servers; all others are clients."""

_ABOUT = """Each cell is a test of cortex that runs the real client or engine against a running gateway: "yes" if there
is such a test, "–" if there is none, which does not mean that it does not work. Tests of clients for Node run with
`CORTEX_TEST_NPM=1`, LangChain4j with `CORTEX_TEST_MAVEN=1`, and those of engines if the engine is installed."""


def compatibility_page() -> str:
    """Return docs/reference/compatibility.md."""
    shown = shown_features()
    clients = {name: shown[name] for name in sorted(shown, key=str.lower) if name not in SERVERS}
    servers = {name: shown[name] for name in SERVERS}
    meanings = table(("column", "meaning"), FEATURES.items())
    return page(
        "Compatibility",
        _ABOUT,
        meanings,
        "## Clients",
        _matrix("client", clients),
        "## Engines",
        _matrix("engine", servers),
    )


def shown_features() -> Mapping[str, set[str]]:
    """Return the features that tests show, by client or server.

    Raises:
        ValueError: a marker has an unknown feature.
    """
    shown: dict[str, set[str]] = defaultdict(set)
    for path in sorted(_TESTS.rglob("test_*.py")):
        for name, feature in _markers(path.read_text(encoding="utf-8")):
            if feature not in FEATURES:
                raise ValueError(f"{path.name}: {feature!r} is not one of {', '.join(FEATURES)}")
            shown[name].add(feature)
    return shown


def _markers(source: str) -> Iterator[tuple[str, str]]:
    """Yield the arguments of the markers `pytest.mark.compatibility(name, feature)`."""
    if "mark.compatibility(" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.compatibility":
            name, feature = (ast.literal_eval(argument) for argument in node.args)
            yield name, feature


def _matrix(kind: str, rows: Mapping[str, set[str]]) -> str:
    columns = [feature for feature in FEATURES if any(feature in row for row in rows.values())]
    return table(
        (kind, *columns),
        (
            (name, *("yes" if feature in row else "–" for feature in columns))
            for name, row in rows.items()
        ),
    )
