"""Splits streamed Markdown into blocks that are complete and can be rendered, and the rest."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def complete_blocks(text: str) -> int:
    """Return the length of the beginning of a text that later text cannot change.

    A block ends at a blank line outside of a fenced code block (CommonMark 0.31, sections 3 and 4.5). A list item that
    continues after a blank line is rendered as two blocks, which looks the same.
    """
    end = position = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        if not line.endswith("\n"):
            break
        marker = _FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence) and not line[marker.end() :].strip():
                fence = ""
                end = position
        elif marker:
            fence = marker[1]
        elif not line.strip():
            end = position
    return end
