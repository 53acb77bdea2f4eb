"""Colour for terminals: when to use it, and what each colour means. Meaning never rests on colour alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO


class ColorWhen(StrEnum):
    """When to write colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Tone(StrEnum):
    """What a colour says; the value is the SGR code that a terminal takes."""

    GOOD = "32"
    BAD = "31"
    WARN = "33"
    HINT = "36"
    DIM = "2"
    BOLD = "1"


@dataclass(frozen=True, slots=True)
class Paint:
    """Puts a tone on text, or leaves it as it is.

    Attributes:
        on: whether to write colour at all.
    """

    on: bool = False

    def tone(self, text: str, tone: Tone | None) -> str:
        """The text in that tone."""
        return f"\x1b[{tone.value}m{text}\x1b[0m" if self.on and tone and text else text

    def good(self, text: str) -> str:
        """As it should be."""
        return self.tone(text, Tone.GOOD)

    def bad(self, text: str) -> str:
        """Broken."""
        return self.tone(text, Tone.BAD)

    def warn(self, text: str) -> str:
        """Worth a look."""
        return self.tone(text, Tone.WARN)

    def hint(self, text: str) -> str:
        """What to do, and names and paths."""
        return self.tone(text, Tone.HINT)

    def dim(self, text: str) -> str:
        """Said in passing."""
        return self.tone(text, Tone.DIM)

    def bold(self, text: str) -> str:
        """A heading."""
        return self.tone(text, Tone.BOLD)


def paint_for(stream: TextIO, environ: Mapping[str, str]) -> Paint:
    """Whether to colour a stream.

    --color (passed on as CORTEX_COLOR) wins, then NO_COLOR (no-color.org), CLICOLOR=0, TERM=dumb, then
    FORCE_COLOR and CLICOLOR_FORCE, then whether the stream is a terminal.
    """
    match environ.get("CORTEX_COLOR"):
        case ColorWhen.ALWAYS:
            return Paint(on=True)
        case ColorWhen.NEVER:
            return Paint()
    if environ.get("NO_COLOR") or environ.get("CLICOLOR") == "0" or environ.get("TERM") == "dumb":
        return Paint()
    if any(environ.get(name, "0") not in {"", "0"} for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return Paint(on=True)
    return Paint(on=stream.isatty())
