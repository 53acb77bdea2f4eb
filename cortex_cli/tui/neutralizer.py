"""Keeps characters from outside from acting on the terminal that `cortex top` draws on."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from typing_extensions import override

from cortex_cli.terminal import remove_unsafe


class Neutralizer(LineFilter):
    """Replaces such characters in everything that is drawn, in whichever widget; see `terminal.neutralize`."""

    @override
    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        # The characters have no width, so removing them moves nothing.
        return [
            segment
            if segment.text.isprintable()
            else Segment(remove_unsafe(segment.text), segment.style)
            for segment in segments
        ]
