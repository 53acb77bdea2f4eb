"""Types of names and numbers with bounds, for everything that a daemon reads: settings, requests, reports, saved rows.

A value within these bounds can be added, stored in SQLite, sent as JSON and shown as a date without an overflow. The
numbers are strict: neither a boolean nor a string is one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_NAME_LENGTH = 512
"""Characters of the longest name of a model, node or instance."""

MAX_INT = 2**53 - 1
"""Largest integer that all JSON parsers read exactly (https://www.rfc-editor.org/rfc/rfc8259#section-6)."""

MAX_DURATION_S = 100 * 365 * 86_400.0
"""Longest duration in seconds: a hundred years, which is still a valid date when added to the current time."""

MAX_UNIX_S = 253_402_300_799.0
"""Latest point in time in Unix seconds: the end of the year 9999, the last that `datetime` has."""

_MAX_MIB = 2**40
_MAX_TEXT_LENGTH = 8000

Text = Annotated[str, AfterValidator(lambda text: text[:_MAX_TEXT_LENGTH])]
"""A sentence or a few lines for people; a longer text is cut off."""

Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
"""What a caller calls a model, node, instance or request; it need not exist."""

Int = Annotated[int, Field(strict=True, ge=-MAX_INT, le=MAX_INT)]
"""An integer that can be negative."""

Flag = Annotated[bool, Field(strict=True)]
"""True or false, and no number or word for it."""

Count = Annotated[int, Field(strict=True, ge=0, le=MAX_INT)]
"""A number of things, or 0."""

PositiveCount = Annotated[int, Field(strict=True, ge=1, le=MAX_INT)]
"""A number of things, at least one."""

Index = Annotated[int, Field(strict=True, ge=0, le=1023)]
"""The index of a device on its node."""

Devices = Annotated[tuple[Index, ...], Field(max_length=64)]
"""Indices of devices on one node."""

Mib = Annotated[int, Field(strict=True, ge=0, le=_MAX_MIB)]
"""A size in MiB."""

Tokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
"""The size of a context in tokens."""

Float = Annotated[float, Field(strict=True, ge=-1e15, le=1e15, allow_inf_nan=False)]
"""A finite number."""

Seconds = Annotated[float, Field(strict=True, ge=0, le=MAX_DURATION_S, allow_inf_nan=False)]
"""A duration in seconds, or 0."""

PositiveSeconds = Annotated[float, Field(strict=True, gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]
"""A duration in seconds, more than 0."""

UnixSeconds = Annotated[float, Field(strict=True, ge=0, le=MAX_UNIX_S, allow_inf_nan=False)]
"""A point in time in Unix seconds, or 0 for none."""
