"""Heads of HTTP messages that come again, known without a parser.

Kept connections repeat themselves. The next head over one is nearly always the last one, byte for byte but for the
length of the body, and two comparisons tell so; a parser makes a dozen calls to find the same words in it again. Only
what a parser has read before is ever taken this way, and only a message that one read brought whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MOST_BYTES = 4096
"""Longer heads are not remembered."""

_MOST_DIGITS = 12

_FRAMING = re.compile(rb"\r\n(?:content-length|transfer-encoding):[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CachedHead:
    """The bytes of a head around the number of its content-length, with their lengths.

    Together with the number they are all of it.
    """

    before: bytes
    after: bytes
    start: int
    rest: int

    @classmethod
    def of(cls, message: bytes) -> CachedHead | None:
        """The head of a whole message whose body has a stated length; None for anything else, or more than that."""
        end = message.find(b"\r\n\r\n", 0, _MOST_BYTES) + 4
        framing = list(_FRAMING.finditer(message, 0, end))
        if end < 4 or len(framing) != 1:
            return None
        start = framing[0].end()
        after = message[message.find(b"\r\n", start) : end]
        repeat = cls(message[:start], after, start, len(after))
        return repeat if repeat.body_of(message) is not None else None

    def size_of(self, message: bytes) -> int:
        """Bytes of the body of a message that has this head."""
        return len(self.body_of(message) or b"")

    def body_of(self, message: bytes) -> bytes | None:
        """The body of a message that has this head, and is just as long as it says; None for any other bytes."""
        start = self.start
        end = message.find(b"\r", start, start + _MOST_DIGITS)
        body = end + self.rest
        if (
            message.startswith(self.before)
            and message.startswith(self.after, end)
            and message[start:end] == b"%d" % (len(message) - body)
        ):
            return message[body:]
        return None
