"""What is wrong with a client's JSON, and where, out of msgspec's errors."""

from __future__ import annotations

import re

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)


def what_and_where(error: str) -> tuple[str, str]:
    """Take the text of a `msgspec.ValidationError` apart.

    Returns:
        What was expected, such as "Expected int, got str", and the path of what is wrong, such as "messages.0.content";
        that is empty where the JSON as a whole is meant.
    """
    match = _PLACE.match(error)
    assert match is not None  # the pattern takes any text
    path = re.sub(r"\[(\d+)\]", r".\1", match["path"] or "").replace("[...]", ".*")
    return match["what"].replace("`", ""), path.lstrip(".")
