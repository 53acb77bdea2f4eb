"""Loads a TOML file and environment variables into validated settings, and records where each value came from.

Environment variables take precedence over the file: CORTEX_GATEWAY__LISTEN sets `listen` of [gateway], and
CORTEX_NEURONS__0__NAME the name of the first [[neurons]]. Only variables with a double underscore are settings.
"""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cortex_common.config.base import Section
from cortex_common.config.secrets import has_userinfo, is_secret
from cortex_common.errors import ConfigError

T = TypeVar("T", bound=Section)

ENV_PREFIX = "CORTEX_"

FileStamp = tuple[int, int, int] | None
"""Identifies the content of a file by its metadata; None if the file can't be read."""

KeyPath = tuple[str | int, ...]
"""The path of a key, with indices for arrays: ("neurons", 0, "name")."""

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")

# A user can write a secret where its hash or file belongs.
_POSSIBLY_SECRET = (".hash", "token_file", "key_file")


@dataclass(frozen=True, slots=True)
class LoadedConfig(Generic[T]):
    """Settings with the origin of each value.

    Attributes:
        value: the validated settings.
        origins: maps a key such as "gateway.listen" to "/etc/cortex/cortex.toml:2" or "$CORTEX_GATEWAY__LISTEN". Keys
            without an entry have their default.
        path: the file that was read, if any.
    """

    value: T
    origins: Mapping[str, str]
    path: Path | None


def load(
    schema: type[T],
    path: Path | None,
    environ: Mapping[str, str],
    *,
    siblings: tuple[type[Section], ...] = (),
) -> LoadedConfig[T]:
    """Load settings.

    Args:
        schema: schema of the file.
        path: the TOML file; None for defaults and environment variables only.
        environ: the environment.
        siblings: schemas of the other files, whose variables are ignored here.

    Raises:
        ConfigError: the file can't be read or is not TOML, a key is unknown, or a value is invalid. The message
            has file, line and key; the hint suggests the key that was probably meant.
    """
    raw, lines = _read(path)
    origins = {
        _dotted(key): f"{path}:{line_of(lines, key)}" for key in _leaves(raw) if path is not None
    }
    for name, text in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = _env_key(name, schema, siblings)
            if key is not None:
                _set(raw, key, _env_value(text), name)
                origins[_dotted(key)] = f"${name}"
    try:
        return LoadedConfig(schema.model_validate(raw), origins, path)
    except ValidationError as error:
        problems = [_explain(e, schema, path, lines, origins) for e in error.errors()]
        raise ConfigError(
            "\n".join(message for message, _ in problems),
            hints=tuple(hint for _, hint in problems if hint),
        ) from error


def file_stamp(path: Path | None) -> FileStamp:
    """Return a value that changes whenever the file is written or replaced."""
    try:
        stat = None if path is None else path.stat()
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line number, from 1, of each table and key of a TOML document.

    Only headers and `key =` lines are parsed, so keys inside inline tables are missing; look those up by their parent
    with `line_of`.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _resolve(_split_key(header[2]), counts)
            if header[1] == "[[":
                index = counts.get(table, 0)
                counts[table] = index + 1
                table = (*table, index)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_split_key(key[1])), number)
    return lines


def line_of(lines: dict[KeyPath, int], path: Sequence[str | int]) -> int | None:
    """Return the line of a key, or of the innermost table around it that has one."""
    for length in range(len(path), 0, -1):
        if (line := lines.get(tuple(path[:length]))) is not None:
            return line
    return None


def _split_key(dotted: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _resolve(parts: KeyPath, counts: dict[KeyPath, int]) -> KeyPath:
    """Add indices to a table header: below an array of tables ([models.x] after [[models]]), the latest element."""
    path: KeyPath = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if position < len(parts) - 1 and path in counts:
            path = (*path, counts[path] - 1)
    return path


def _read(path: Path | None) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    if path is None:
        return {}, {}
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), key_lines(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path


def _dotted(path: KeyPath) -> str:
    return ".".join(str(p) for p in path)


def _env_key(
    name: str, schema: type[Section], siblings: tuple[type[Section], ...]
) -> KeyPath | None:
    """Return the key that an environment variable sets, or None if it belongs to a sibling schema."""
    parts = name.removeprefix(ENV_PREFIX).lower().split("__")
    if parts[0] not in schema.model_fields:
        known = {field for sibling in siblings for field in sibling.model_fields}
        if parts[0] in known:
            return None
        raise ConfigError(
            f"${name}: unknown section {parts[0]!r}",
            hints=_suggestion(parts[0], [*schema.model_fields, *known]),
        )
    return tuple(int(p) if p.isdigit() else p for p in parts)


def _env_value(text: str) -> Any:
    """Parse a list, number or boolean as TOML; return anything else as a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(raw: dict[str, Any], key: KeyPath, value: Any, variable: str) -> None:
    container: Any = raw
    for part, following in itertools.pairwise(key):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(part, int):
            if not isinstance(container, list) or part > len(container):
                raise ConfigError(f"${variable}: no entry {part} to change, and it is not the next")
            if part == len(container):
                container.append(empty)
            container = container[part]
        elif isinstance(container, dict):
            container = container.setdefault(part, empty)
    last = key[-1]
    if isinstance(container, dict) and isinstance(last, str):
        container[last] = value
    else:
        raise ConfigError(f"${variable}: {_dotted(key[:-1])} is not a table")


def _explain(
    error: ErrorDetails,
    schema: type[Section],
    path: Path | None,
    lines: dict[KeyPath, int],
    origins: Mapping[str, str],
) -> tuple[str, str | None]:
    """Return one line with location, key and problem, and a hint if there is one."""
    location = tuple(error["loc"])
    key = _dotted(location)
    line = line_of(lines, location)
    at = origins.get(key) or (f"{path}:{line}" if path and line else str(path or "configuration"))
    if error["type"] == "extra_forbidden":
        names = list(_keys_of_table(schema, location[:-1]))
        suggestion = _suggestion(str(location[-1]), names)
        hint = suggestion[0] if suggestion else f"valid keys: {', '.join(sorted(names))}"
        return f"{at}: unknown key {key}", hint
    if error["type"] == "missing":
        return f"{at}: {key} is required", None
    if error["type"] == "tuple_type":
        is_table = isinstance(error["input"], dict)
        hint = f"use [[{key}]] for a list of tables" if is_table else 'use brackets: ["..."]'
        return f"{at}: {key}: Input should be a list", hint
    hidden = is_secret(key) or key.endswith(_POSSIBLY_SECRET)
    hidden = hidden or isinstance(error["input"], dict | list) or ".env." in key
    hidden = hidden or has_userinfo(str(error["input"]))
    got = "" if hidden else f" (got {error['input']!r})"
    prefix = f"{key}: " if key else ""
    return f"{at}: {prefix}{error['msg'].removeprefix('Value error, ')}{got}", None


def _suggestion(name: str, names: list[str]) -> tuple[str, ...]:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return (f"did you mean {close[0]!r}?",) if close else ()


def _keys_of_table(schema: type[BaseModel], path: tuple[str | int, ...]) -> Iterator[str]:
    model: type[BaseModel] | None = schema
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = None if field is None else next(_models_in(field.annotation), None)
    if model is not None:
        yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
