"""The reference of errors: the tree, and for each code what the code base says and advises with it."""

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

_ABOUT = """An error of cortex has a stable `code` to match on, an HTTP status, a message, and `hints` that say what to
do. `src` is `"cortex"`: an engine's own errors are passed on without it.

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

On Anthropic's routes the same stands in the shape that its SDK reads. Answers with 429 and 503 carry `Retry-After`, in
seconds. In a stream that has begun an error is an event of the client's dialect, never a clean end. What the command
makes of errors is told by its [exit codes](cli.md#exit-codes); what you see and what to do, by symptom, is told in
[Troubleshooting](../troubleshooting.md)."""

_OTHERS = """## Other codes

| code | where | meaning |
|---|---|---|
| `client_disconnected` | logs, metrics | the client left or vanished, or took nothing for `idle_timeout_s` |
| `engine_400` to `engine_599` | logs, metrics | the engine answered with that status; its body went to the client |
"""


def errors_page() -> str:
    """docs/reference/errors.md."""
    advice = _advice()
    rows = [
        (f"[`{code}`](#{code})", str(kind.status), advice[kind])
        for code, kind in ERRORS_BY_CODE.items()
    ]
    said = _said()
    parts = [_ABOUT, table(("code", "status", "what the caller can do"), rows)]
    for code, kind in ERRORS_BY_CODE.items():
        parts += [f"## {code}", (inspect.getdoc(kind) or "").partition("\n\nArgs:")[0]]
        if found := said[kind.__name__]:
            lines = (
                f"- {message}" + "".join(f"<br>→ {h}" for h in hints) for message, hints in found
            )
            parts.append("\n".join(lines))
    return page("Errors", *parts, _OTHERS.rstrip())


def _advice() -> Mapping[type[CortexError], str]:
    """What the tree in the module's docstring advises; a class without advice has its parent's."""
    told = {name: text.strip() for name, _, _, text in _LINE.findall(errors.__doc__ or "")}
    return {
        kind: next(told[c.__name__] for c in kind.__mro__ if told.get(c.__name__))
        for kind in ERRORS_BY_CODE.values()
    }


def _said() -> Mapping[str, list[tuple[str, tuple[str, ...]]]]:
    """Messages and hints of each class that are raised with hints somewhere, as templates."""
    found: defaultdict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                # A class method makes an error of its own class as `cls(...)`.
                own = {"cls": node.name} if isinstance(node, ast.ClassDef) else {}
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                        _note(call, own.get(call.func.id, call.func.id), found)
    return found


def _note(
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
    """The texts of an expression, with `…` for what is filled in."""
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
