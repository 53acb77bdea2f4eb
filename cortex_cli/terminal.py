"""Output to a terminal, on which no character from outside acts: names, errors, logs and responses of other hosts.

Escape sequences can clear the screen, set the clipboard or answer as if they were typed; direction marks make text read
differently from what it is (https://trojansource.codes). Every word that is written passes `neutralize`.
"""

from __future__ import annotations

import re
import sys

from cortex_cli.color import Tone

UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks, embeddings, overrides and isolates
    "\u2028\u2029"  # line ends for some programs only
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # invisible annotations and tags
    "\ud800-\udfff"  # cannot be encoded
)
"""Characters that act on a terminal or are invisible, as a class of a regular expression without its brackets."""

_UNSAFE_CHARACTERS = re.compile(f"[{UNSAFE}]")
_UNSAFE_RUN = re.compile(f"[{UNSAFE}\t\n]+")

_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]{0,256}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b(?:[ -/]*[0-~])?"
)
"""Escape sequences of ECMA-48 and xterm: control sequences, strings such as titles and links, and short ones."""

_OWN_COLORS = frozenset(f"\x1b[{code}m" for code in ("0", *(tone.value for tone in Tone)))


def neutralize(text: str) -> str:
    """Return text without characters that act on a terminal, except for tabs and line feeds."""
    return text if text.isprintable() else remove_unsafe(_SEQUENCES.sub("", text))


def remove_unsafe(text: str) -> str:
    """Return text without the characters of `UNSAFE`; what an escape sequence consists of otherwise remains."""
    return _UNSAFE_CHARACTERS.sub("", text)


def neutralize_line(text: str) -> str:
    """Return text on one line, with spaces in place of line ends and of characters that act on a terminal."""
    if not text.isprintable():
        text = _UNSAFE_RUN.sub(" ", _SEQUENCES.sub(" ", text))
    return text.strip()


def escape_unsafe(document: str) -> str:
    r"""Return a JSON document in which such characters in strings are escaped as \uXXXX; its value is the same."""
    return _UNSAFE_CHARACTERS.sub(_escape, document)


def write_out(text: str) -> None:
    """Write to stdout; of the escape sequences in the text only the colors of `color.Tone` are kept."""
    sys.stdout.write(neutralize_except_colors(text))


def write_err(text: str) -> None:
    """Write to stderr; see `write_out`."""
    sys.stderr.write(neutralize_except_colors(text))


def neutralize_except_colors(text: str) -> str:
    """Return text as `neutralize` does, but with the escape sequences of `color.Colors`."""
    if "\x1b" not in text:
        return neutralize(text)
    parts, end = [], 0
    for sequence in _SEQUENCES.finditer(text):
        parts.append(neutralize(text[end : sequence.start()]))
        if sequence[0] in _OWN_COLORS:
            parts.append(sequence[0])
        end = sequence.end()
    return "".join((*parts, neutralize(text[end:])))


def _escape(unsafe: re.Match[str]) -> str:
    # In UTF-16, as JSON requires.
    units = unsafe[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
