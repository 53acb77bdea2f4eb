"""JSON values as TOML and as YAML 1.2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from cortex_cli.terminal import UNSAFE


def toml_value(value: Any) -> str:
    """Return a JSON value in TOML; None, which TOML does not have, as "–"."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, str):
        # TOML's basic strings use the escapes of JSON, but DEL must be escaped too.
        return _escape(json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def toml_key(key: str) -> str:
    """Return a TOML key, quoted if necessary."""
    bare = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if bare else toml_value(key)


_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
# YAML 1.1 parsers read these as booleans and nulls.
_RESERVED_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}

# Characters that are not printable in YAML, that it reads as line breaks, or that act on a terminal.
_UNPRINTABLE = re.compile(f"[{UNSAFE}\ufeff\ufffe\uffff]")


def _escape(text: str) -> str:
    """Escape such characters as TOML and YAML do in double-quoted strings."""

    def escaped(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _UNPRINTABLE.sub(escaped, text)


def to_yaml(value: Any) -> str:
    """Return a value of dicts, lists, strings, numbers, booleans and None as block YAML."""
    return "\n".join(_block(value))


def _block(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _entry(f"{_scalar(str(key))}:", inner)
    elif isinstance(value, list) and value:
        for inner in value:
            first, *rest = _block(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(head: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        yield from (f"  {line}" for line in _block(value))
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _RESERVED_WORDS:
        return value
    if isinstance(value, float):
        # YAML 1.1 parsers accept an exponent only after a decimal point.
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"
    return _escape(json.dumps(value, ensure_ascii=False))
