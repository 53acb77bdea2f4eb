"""Parsing of msgspec's validation errors, to report the invalid field of a client's JSON."""

from __future__ import annotations

import re

_ERROR = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)


def parse_validation_error(error: str) -> tuple[str, str]:
    """Split the text of a `msgspec.ValidationError` into the problem and its location.

    Returns:
        What was expected, such as "Expected int, got str", and the path of the invalid value, such as
        "messages.0.content", which is empty if the whole document is meant.
    """
    match = _ERROR.match(error)
    assert match is not None  # the pattern matches any text
    path = re.sub(r"\[(\d+)\]", r".\1", match["path"] or "").replace("[...]", ".*")
    return match["what"].replace("`", ""), path.lstrip(".")
