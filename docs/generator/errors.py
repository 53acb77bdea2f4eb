"""The errors reference: the error tree, and the messages and hints that the code base uses with each error code."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from cortex_common import errors
from cortex_common.errors import ERRORS_BY_CODE, CortexError
from generator.text import page, sentence, table

_ROOT = Path(__file__).parents[2]
_SOURCES = ("common/cortex_common", "cortex_server", "neuron_server")
_LINE = re.compile(r"^[\s│├└─]*([A-Z]\w+) +(\d{3}) +(\w+) *(.*)$", re.MULTILINE)

_ABOUT = """Every error of cortex has a stable `code` to match on, an HTTP status, a message, and `hints` that say what
to do. Errors of cortex have `src` set to `"cortex"`; errors of an engine are passed on without it.

```json
{"error": {
  "message": "model 'qwen' does not exist",
  "type": "not_found_error",
  "param": "model",
  "code": "model_not_found",
  "src": "cortex",
  "hints": ["did you mean 'qwen3'?"]
}}
```

On Anthropic's routes, errors have the format that its SDK expects. Responses with status 429 and 503 have a
`Retry-After` header in seconds. After a stream has started, an error is sent as an event in the client's dialect; the
stream never ends as if it were complete. See also the [exit codes](cli.md#exit-codes) of the command, and
[Troubleshooting](../troubleshooting.md) for symptoms and solutions."""

_OTHERS = """## Other codes

| code | where | meaning |
|---|---|---|
| `client_disconnected` | logs, metrics | the client disconnected, vanished, or did not read for `idle_timeout_s` |
| `engine_400` to `engine_599` | logs, metrics | the engine returned this status, which was passed on to the client |
"""


def errors_page() -> str:
    """Return the text of docs/reference/errors.md."""
    advice = _advice()
    rows = [
        (f"[`{code}`](#{code})", str(kind.status), advice[kind])
        for code, kind in ERRORS_BY_CODE.items()
    ]
    messages = _messages()
    parts = [_ABOUT, table(("code", "status", "what to do"), rows)]
    for code, kind in ERRORS_BY_CODE.items():
        parts += [f"## {code}", (inspect.getdoc(kind) or "").partition("\n\nArgs:")[0]]
        if found := messages[kind.__name__]:
            lines = (
                f"- {message}" + "".join(f"<br>→ {h}" for h in hints) for message, hints in found
            )
            parts.append("\n".join(lines))
    return page("Errors", *parts, _OTHERS.rstrip())


def _advice() -> Mapping[type[CortexError], str]:
    """Return the advice in the tree of the module docstring; a class without advice inherits its parent's."""
    advice = {name: text.strip() for name, _, _, text in _LINE.findall(errors.__doc__ or "")}
    return {
        kind: next(advice[c.__name__] for c in kind.__mro__ if advice.get(c.__name__))
        for kind in ERRORS_BY_CODE.values()
    }


def _messages() -> Mapping[str, list[tuple[str, tuple[str, ...]]]]:
    """Return templates of all messages that are raised with hints, and their hints, by class name."""
    found: defaultdict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                # Class methods create errors of their own class with `cls(...)`.
                own = {"cls": node.name} if isinstance(node, ast.ClassDef) else {}
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                        _add(call, own.get(call.func.id, call.func.id), found)
    return found


def _add(
    call: ast.Call, name: str, found: defaultdict[str, list[tuple[str, tuple[str, ...]]]]
) -> None:
    hints = next((k.value for k in call.keywords if k.arg == "hints"), None)
    if not call.args or hints is None:
        return
    entry = (_message(call.args[0]), tuple(dict.fromkeys(_texts(hints))))
    if all(entry) and entry not in found[name]:
        found[name].append(entry)


def _message(node: ast.expr) -> str:
    return sentence(next(_texts(node), ""))


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the strings in an expression, with `…` for interpolated values."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    else:
        for inner in ast.iter_child_nodes(node):
            yield from _texts(inner)
