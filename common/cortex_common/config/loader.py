"""Layers a TOML file and environment variables into one validated section, and remembers where each value came from.

Environment variables win over the file: CORTEX_GATEWAY__LISTEN sets `listen` of [gateway], CORTEX_NEURONS__0__NAME
the name of the first [[neurons]]. Only variables with a double underscore are settings.
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
from cortex_common.config.secrets import is_secret
from cortex_common.errors import ConfigError

Stamp = tuple[int, int, int] | None
"""Of a file's content, as far as its directory tells; None where there is no file to look at."""


def stamp_of(path: Path | None) -> Stamp:
    """Differs whenever the file was written or replaced."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


KeyPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of each table and key.

    Reads headers and `key =` lines only, so keys inside inline tables are not listed; look those up by
    their parent.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _resolve(_parts(header[2]), counts)
            if header[1] == "[[":
                index = counts.get(table, 0)
                counts[table] = index + 1
                table = (*table, index)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key[1])), number)
    return lines


def _parts(dotted: str) -> KeyPath:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _resolve(parts: KeyPath, counts: dict[KeyPath, int]) -> KeyPath:
    """A header below an array of tables ([models.x] after [[models]]) means its latest element."""
    path: KeyPath = ()
    for position, part in enumerate(parts):
        path = (*path, part)
        if position < len(parts) - 1 and path in counts:
            path = (*path, counts[path] - 1)
    return path


def line_of(lines: dict[KeyPath, int], path: Sequence[str | int]) -> int | None:
    """The line of the key, or of the nearest table around it."""
    for length in range(len(path), 0, -1):
        if (found := lines.get(tuple(path[:length]))) is not None:
            return found
    return None


T = TypeVar("T", bound=Section)

ENV_PREFIX = "CORTEX_"

_MAY_HOLD_SECRETS = (".hash", "token_file", "key_file")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings with the origin of each value.

    Attributes:
        value: the validated settings.
        origins: "gateway.listen" -> "/etc/cortex/cortex.toml:2", "$CORTEX_GATEWAY__LISTEN"; a key without an
            entry has its default.
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
) -> Loaded[T]:
    """Read settings.

    Args:
        schema: what the file holds.
        path: the TOML file; None for defaults and environment only.
        environ: the environment.
        siblings: schemas of the other services, whose variables are theirs and no mistake here.

    Raises:
        ConfigError: the file can't be read or is no TOML, a key is unknown, or a value is of the wrong type;
            the message names file, line, key and what was probably meant.
    """
    raw, lines = _read(path)
    origins = {
        _dotted(key): f"{path}:{line_of(lines, key)}" for key in _leaves(raw) if path is not None
    }
    for name, text in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            key = _env_key(name, schema, siblings)
            if key is not None:
                _put(raw, key, _env_value(text), name)
                origins[_dotted(key)] = f"${name}"
    try:
        return Loaded(schema.model_validate(raw), origins, path)
    except ValidationError as failed:
        problems = [_explain(e, schema, path, lines, origins) for e in failed.errors()]
        raise ConfigError(
            "\n".join(message for message, _ in problems),
            hints=tuple(hint for _, hint in problems if hint),
        ) from failed


def _read(path: Path | None) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    if path is None:
        return {}, {}
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), key_lines(text)
    except OSError as failed:
        raise ConfigError(f"{path}: {failed.strerror or failed}") from failed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failed:
        raise ConfigError(f"{path}: not valid TOML: {failed}") from failed


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
    parts = name.removeprefix(ENV_PREFIX).lower().split("__")
    if parts[0] not in schema.model_fields:
        known = {field for sibling in siblings for field in sibling.model_fields}
        if parts[0] in known:
            return None
        names = [*schema.model_fields, *known]
        raise ConfigError(
            f"${name}: there is no section {parts[0]!r}",
            hints=_meant(parts[0], names),
        )
    return tuple(int(p) if p.isdigit() else p for p in parts)


def _env_value(text: str) -> Any:
    """Lists, numbers and booleans as TOML writes them; anything else is the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(raw: dict[str, Any], key: KeyPath, value: Any, name: str) -> None:
    where: Any = raw
    for part, following in itertools.pairwise(key):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(part, int):
            if not isinstance(where, list) or part > len(where):
                raise ConfigError(f"${name}: there is no entry {part} to change or to append")
            if part == len(where):
                where.append(empty)
            where = where[part]
        elif isinstance(where, dict):
            where = where.setdefault(part, empty)
    last = key[-1]
    if isinstance(where, dict) and isinstance(last, str):
        where[last] = value
    else:
        raise ConfigError(f"${name}: {_dotted(key[:-1])} has no keys")


def _explain(
    error: ErrorDetails,
    schema: type[Section],
    path: Path | None,
    lines: dict[KeyPath, int],
    origins: Mapping[str, str],
) -> tuple[str, str | None]:
    """One line for a person: where, which key, what is wrong; and a hint when a name is close."""
    location = tuple(error["loc"])
    key = _dotted(location)
    line = line_of(lines, location)
    at = origins.get(key) or (f"{path}:{line}" if path and line else str(path or "configuration"))
    if error["type"] == "extra_forbidden":
        names = list(_fields_at(schema, location[:-1]))
        meant = _meant(str(location[-1]), names)
        hint = meant[0] if meant else f"keys here: {', '.join(sorted(names))}"
        return f"{at}: unknown key {key}", hint
    if error["type"] == "missing":
        return f"{at}: {key} is required", None
    if error["type"] == "tuple_type":
        what = f"{at}: {key}: Input should be a list"
        table = isinstance(error["input"], dict)
        return (
            what,
            f"a table of a list begins with [[{key}]]"
            if table
            else 'write it in brackets, as ["..."]',
        )
    # A secret may have been written where its hash or its file belongs.
    hidden = is_secret(key) or key.endswith(_MAY_HOLD_SECRETS)
    hidden = hidden or isinstance(error["input"], dict | list)
    shown = "" if hidden else f" (got {error['input']!r})"
    named = f"{key}: " if key else ""
    return f"{at}: {named}{error['msg'].removeprefix('Value error, ')}{shown}", None


def _meant(name: str, names: list[str]) -> tuple[str, ...]:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return (f"did you mean {close[0]!r}?",) if close else ()


def _fields_at(schema: type[BaseModel], path: tuple[str | int, ...]) -> Iterator[str]:
    """The keys that a table of the file may have."""
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
