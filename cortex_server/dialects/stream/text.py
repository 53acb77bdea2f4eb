"""Characters that an engine cut in two: the halves stand at the end of one text and the start of the next."""

from __future__ import annotations

import re

# The beginning of a character of two, three or four bytes, and then the quote that ends the text.
_CUT = re.compile(rb"([\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})(?=\")")
_REST = re.compile(rb"(?<=\")[\x80-\xbf]{1,3}")


class HalfCharacters:
    """Puts the halves together again, in the later of the two events.

    Attributes:
        waiting: a first half that waits for its second; empty when there is none.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = b""

    def mend(self, data: bytes) -> bytes:
        """An event's JSON in whole characters; a half whose other half never comes is lost."""
        half, self.waiting = self.waiting, b""
        if not half and is_text(data):
            return data
        if half:
            data = _REST.sub(lambda rest: half + rest[0], data, count=1)
        cut = _CUT.search(data)
        if cut is not None:
            self.waiting = cut[1]
            data = data[: cut.start()] + data[cut.end() :]
        return data if is_text(data) else data.decode("utf-8", "replace").encode()


def is_text(data: bytes) -> bool:
    """Whether the bytes are whole characters of UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
