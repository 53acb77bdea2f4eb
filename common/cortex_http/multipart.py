"""Fields of multipart/form-data bodies (RFC 7578), without decoding the rest."""

from __future__ import annotations

import re


class FormField:
    """A text field of multipart/form-data bodies.

    Args:
        name: Name of the field.
    """

    def __init__(self, name: str) -> None:
        escaped = re.escape(name.encode())
        self._pattern = re.compile(
            rb'(content-disposition:[^\r\n]*[; ]name=(?:"%b"|%b(?=[;\s]))[^\r\n]*\r\n'
            rb"(?:[^\r\n]+\r\n)*\r\n)([^\r\n]*)" % (escaped, escaped),
            re.IGNORECASE,
        )

    def read(self, body: bytes) -> str | None:
        """Return the value of the first such field; None when there is none."""
        found = self._pattern.search(body)
        return found[2].decode("utf-8", "replace").strip() if found else None

    def replace(self, body: bytes, value: str) -> bytes:
        """Return the same body with another value in the first such field."""
        return self._pattern.sub(lambda found: found[1] + value.encode(), body, count=1)
