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


_VALUE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_MAX_VALUE = 128


@dataclass(frozen=True, slots=True)
class CachedHeadWithId:
    """A head like `CachedHead` whose last header has another value in every message, such as a request id.

    Attributes:
        before: Everything up to the number of the content-length.
        after: Everything between that number and the value of the last header.
        start: Length of `before`.
        rest: Length of `after`.
    """

    before: bytes
    after: bytes
    start: int
    rest: int

    @classmethod
    def from_message(cls, message: bytes, header: bytes) -> CachedHeadWithId | None:
        """Return the head of a complete message whose last header is `header`; None for any other bytes.

        Args:
            message: The message.
            header: Name of the header in lower case.
        """
        head = CachedHead.from_message(message)
        if head is None:
            return None
        last = head.after.rfind(b"\r\n", 0, -len(b"\r\n\r\n")) + len(b"\r\n")
        prefix = head.after[:last] + header + b": "
        if last < len(b"\r\n") or not head.after.startswith(prefix):
            return None
        found = cls(head.before, prefix, head.start, len(prefix))
        return found if found.split(message) is not None else None

    def split(self, message: bytes) -> tuple[bytes, bytes] | None:
        """Return body and value of the last header if a message has this head and the stated length; else None."""
        start = self.start
        number_end = message.find(b"\r", start, start + _MAX_LENGTH_DIGITS)
        value = number_end + self.rest
        end = message.find(b"\r\n\r\n", value, value + _MAX_VALUE + 4)
        if (
            end > 0
            and message.startswith(self.before)
            and message.startswith(self.after, number_end)
            and message[start:number_end] == b"%d" % (len(message) - end - 4)
            and _VALUE.fullmatch(message, value, end)
        ):
            return message[end + 4 :], message[value:end]
        return None
