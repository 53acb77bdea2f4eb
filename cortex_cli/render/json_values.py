"""Conversion of models to JSON values: the fields of the API, with times in RFC 3339."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from cortex_common.clock import UnixTime

_LAST = datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()
"""RFC 3339 has no years after 9999."""


def to_plain(value: Any) -> Any:
    """Convert a value to dicts, lists, strings, numbers, booleans and None, for structured output formats.

    Fields marked as `UnixTime` become RFC 3339 in UTC, or None if they are 0, which means that it has not happened.
    """
    if isinstance(value, BaseModel):
        return _fields(value, type(value).model_fields)
    if is_dataclass(value):
        return _fields(value, (f.name for f in fields(value)))
    if isinstance(value, Mapping):
        return {to_jsonable_python(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return to_jsonable_python(value)


def _fields(value: Any, names: Iterable[str]) -> dict[str, Any]:
    times = _time_marks(value.__class__)
    return {
        name: rfc3339(inner, exact=times[name].exact) if name in times else to_plain(inner)
        for name in names
        for inner in (getattr(value, name),)
    }


def rfc3339(seconds: float | None, *, exact: bool) -> str | None:
    """Format Unix seconds as "2026-11-26T21:09:15Z"; None for no time.

    Args:
        seconds: Unix seconds; 0 and None mean no time.
        exact: whether to include milliseconds.

    See https://www.rfc-editor.org/rfc/rfc3339#section-5.6.
    """
    if not seconds:
        return None
    moment = datetime.fromtimestamp(min(seconds, _LAST), UTC)
    return moment.isoformat(timespec="milliseconds" if exact else "seconds")[:-6] + "Z"


@cache
def _time_marks(kind: type) -> dict[str, UnixTime]:
    """Return the `UnixTime` marks of a class by field."""
    return {
        name: mark
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for form in (hint, *get_args(hint))
        for mark in getattr(form, "__metadata__", ())
        if isinstance(mark, UnixTime)
    }
