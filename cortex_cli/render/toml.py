"""Values as TOML writes them."""

from __future__ import annotations

import json
from typing import Any


def toml_value(value: Any) -> str:
    """A JSON value in TOML; None, which TOML has not, as "–"."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON does, but take DEL only escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def toml_key(key: str) -> str:
    """A key, quoted where it must be."""
    bare = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if bare else toml_value(key)
