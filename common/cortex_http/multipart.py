"""Fields of multipart/form-data bodies (RFC 7578, on RFC 2046), without decoding the rest.

Servers differ in how they read a form that is not plain. Two of them may find different values for one field, so that
what was checked here is not what a server uses. Such forms are refused: a field that occurs twice or has two names, a
folded header, a boundary that is continued, or a form without its end. Everything is linear in the body's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_PARTS = 1000

_MAX_HEAD_BYTES = 16 * 1024

_BOUNDARY = re.compile(
    rb';[ \t]*boundary=(?:"([^"\\]{1,70})"|([^\s";,]{1,70}))[ \t]*(?=;|$)', re.IGNORECASE
)

_PADDING = re.compile(rb"[ \t]*")

_DISPOSITION = b"content-disposition"

_PARAMETER = re.compile(
    rb';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;"]*))[ \t]*'
)

_ESCAPED = re.compile(rb"\\(.)")


class FormError(ValueError):
    """A form is malformed, or servers could read it in different ways."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A text field of a form.

    Attributes:
        value: Its value.
        start: Where the value begins in the body.
        end: Where it ends.
    """

    value: str
    start: int
    end: int

    def replace(self, body: bytes, value: str) -> bytes:
        """Return the same body with another value."""
        return body[: self.start] + value.encode() + body[self.end :]


def find_field(body: bytes, content_type: bytes, name: str) -> FormField | None:
    """Return the text field of a name; None when there is none.

    Args:
        body: The form.
        content_type: Value of the Content-Type header, which names the boundary.
        name: Name of the field.

    Raises:
        FormError: The form is malformed or ambiguous.
    """
    found: FormField | None = None
    for head, start, end in _parts(body, _delimiter(content_type)):
        if _name_of(head) != name.encode():
            continue
        if found is not None:
            raise FormError(f"the field {name!r} occurs twice")
        try:
            found = FormField(body[start:end].decode(), start, end)
        except UnicodeDecodeError as failed:
            raise FormError(f"the field {name!r} is not UTF-8") from failed
    return found


def add_field(body: bytes, content_type: bytes, name: str, value: str) -> bytes:
    """Return the same form with another text field at its beginning.

    Raises:
        FormError: The header does not name the boundary.
    """
    head = b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (
        _delimiter(content_type),
        name.encode(),
    )
    return head + value.encode() + b"\r\n" + body


def _delimiter(content_type: bytes) -> bytes:
    boundaries = _BOUNDARY.findall(content_type)
    if len(boundaries) != 1 or content_type.lower().count(b"boundary") != 1:
        raise FormError("the Content-Type header does not name one boundary")
    return b"--" + b"".join(boundaries[0])


def _parts(body: bytes, delimiter: bytes) -> list[tuple[bytes, int, int]]:
    """Return each part as its head, and the start and end of its content."""
    line = b"\r\n" + delimiter
    at = 0 if body.startswith(delimiter) else body.find(line) + len(b"\r\n")
    if at == 1:
        raise FormError("the boundary does not occur in the body")
    parts: list[tuple[bytes, int, int]] = []
    while True:
        at += len(delimiter)
        if body.startswith(b"--", at):
            return parts
        padding = _PADDING.match(body, at)
        assert padding is not None  # it may be empty
        start = padding.end()
        if not body.startswith(b"\r\n", start):
            raise FormError("something follows a boundary on its line")
        if len(parts) == _MAX_PARTS:
            raise FormError(f"the form has more than {_MAX_PARTS} parts")
        end = body.find(line, start)
        if end < 0:
            raise FormError("the form's end is missing")
        content = body.find(b"\r\n\r\n", start, min(end, start + _MAX_HEAD_BYTES)) + len(
            b"\r\n\r\n"
        )
        if content < len(b"\r\n\r\n"):
            raise FormError("a part has no headers, or too long ones")
        parts.append((body[start + 2 : content - 4], content, end))
        at = end + len(b"\r\n")


def _name_of(head: bytes) -> bytes | None:
    """Return the name of a part from its headers, which are lines without the last one's end."""
    names: list[bytes] = []
    dispositions = 0
    for line in head.split(b"\r\n"):
        if line[:1] in {b" ", b"\t"} or b"\n" in line or b"\r" in line:
            raise FormError("a part has a folded header")
        header, _, value = line.partition(b":")
        if header.strip().lower() != _DISPOSITION:
            continue
        dispositions += 1
        names += _names_in(value)
    if dispositions > 1 or len(names) > 1:
        raise FormError("a part has two names")
    return names[0] if names else None


def _names_in(disposition: bytes) -> list[bytes]:
    """Return the values of all `name` parameters."""
    names = []
    at = disposition.find(b";")
    while 0 <= at < len(disposition):
        parameter = _PARAMETER.match(disposition, at)
        if parameter is None:
            raise FormError("a part's Content-Disposition is malformed")
        key = parameter[1].lower()
        if key.startswith(b"name*"):
            raise FormError("a part's name is encoded (RFC 5987), which forms must not do")
        if key == b"name":
            quoted, plain = parameter[2], parameter[3]
            names.append(_ESCAPED.sub(rb"\1", quoted) if quoted is not None else plain)
        at = parameter.end()
    return names
