"""Colors for terminals: when to use them, and what each one means. Color is never the only indication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO


class ColorWhen(StrEnum):
    """Values of --color."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Tone(StrEnum):
    """Meaning of a color; the value is the SGR code."""

    GOOD = "32"
    BAD = "31"
    WARN = "33"
    HINT = "36"
    DIM = "2"
    BOLD = "1"


@dataclass(frozen=True, slots=True)
class Colors:
    """Colors text, if colors are enabled.

    Attributes:
        enabled: whether to write colors.
    """

    enabled: bool = False

    def tone(self, text: str, tone: Tone | None) -> str:
        """Return the text in a tone."""
        return f"\x1b[{tone.value}m{text}\x1b[0m" if self.enabled and tone and text else text

    def good(self, text: str) -> str:
        """Return the text in the color of success."""
        return self.tone(text, Tone.GOOD)

    def bad(self, text: str) -> str:
        """Return the text in the color of errors."""
        return self.tone(text, Tone.BAD)

    def warn(self, text: str) -> str:
        """Return the text in the color of warnings."""
        return self.tone(text, Tone.WARN)

    def hint(self, text: str) -> str:
        """Return the text in the color of hints, names and paths."""
        return self.tone(text, Tone.HINT)

    def dim(self, text: str) -> str:
        """Return the text dimmed."""
        return self.tone(text, Tone.DIM)

    def bold(self, text: str) -> str:
        """Return the text in bold."""
        return self.tone(text, Tone.BOLD)


def colors_for(stream: TextIO, environ: Mapping[str, str]) -> Colors:
    """Return the colors for a stream.

    The order of precedence is --color (in CORTEX_COLOR), NO_COLOR (no-color.org), CLICOLOR=0, TERM=dumb, FORCE_COLOR
    and CLICOLOR_FORCE, and whether the stream is a terminal.
    """
    match environ.get("CORTEX_COLOR"):
        case ColorWhen.ALWAYS:
            return Colors(enabled=True)
        case ColorWhen.NEVER:
            return Colors()
    if environ.get("NO_COLOR") or environ.get("CLICOLOR") == "0" or environ.get("TERM") == "dumb":
        return Colors()
    if any(environ.get(name, "0") not in {"", "0"} for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return Colors(enabled=True)
    return Colors(enabled=stream.isatty())
