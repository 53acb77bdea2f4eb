"""Recognition of repeated HTTP message heads without a parser.

Messages on a kept-alive connection repeat each other: the next head nearly always equals the last one byte for byte,
except for the content length. Two comparisons find that out, where a parser makes a dozen calls. Only heads that a
parser has accepted before are recognized, and only messages that arrive whole in one read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_HEAD_BYTES = 4096
"""Longer heads are not cached."""

_MAX_LENGTH_DIGITS = 12

_FRAMING = re.compile(rb"\r\n(?:content-length|transfer-encoding):[ \t]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CachedHead:
    """The bytes of a head before and after the number of its content-length.

    Attributes:
        before: Everything up to the number.
        after: Everything behind it, the blank line included.
        start: Length of `before`.
        rest: Length of `after`.
    """

    before: bytes
    after: bytes
    start: int
    rest: int

    @classmethod
    def from_message(cls, message: bytes) -> CachedHead | None:
        """Return the head of a complete message with a content-length; None for any other bytes."""
        end = message.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES) + 4
        framing = list(_FRAMING.finditer(message, 0, end))
        if end < 4 or len(framing) != 1:
            return None
        start = framing[0].end()
        after = message[message.find(b"\r\n", start) : end]
        head = cls(message[:start], after, start, len(after))
        return head if head.body_of(message) is not None else None

    def body_length(self, message: bytes) -> int:
        """Return the length of the body of a message that has this head."""
        return len(self.body_of(message) or b"")

    def body_of(self, message: bytes) -> bytes | None:
        """Return the body of a message that has this head and exactly the stated length; None for any other bytes."""
        start = self.start
        end = message.find(b"\r", start, start + _MAX_LENGTH_DIGITS)
        body = end + self.rest
        if (
            message.startswith(self.before)
            and message.startswith(self.after, end)
            and message[start:end] == b"%d" % (len(message) - body)
        ):
            return message[body:]
        return None
