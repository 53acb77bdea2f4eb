"""The first bytes of an engine's answer, which show what it is, whatever its content type says.

Servers and the proxies in front of them label streams as JSON and JSON as streams, send keep-alive comments or blank
lines before either, and report errors and sign-in pages with status 200.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from cortex_common.errors import UpstreamFailed
from cortex_common.sse import parse_block
from cortex_server.dialects.engine_errors import error_from_event

_MAX_FIRST_EVENT = 64 * 1024
"""Bytes of the first event that are waited for to see whether it is an error."""

_INSIGNIFICANT = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s+|:[^\r\n]*(?:\r\n?|\n))*")
"""A byte order mark, blank lines, and comments of an event stream."""

_FIELD = re.compile(rb"(?:data|event|id|retry|error)[ ]?:")
_STARTS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b"\xef\xbb\xbf")
"""What may still become a field or a byte order mark, when it is cut."""
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_ERROR_OBJECT = re.compile(rb'\{\s*"error"\s*:\s*(?!null)[^\s]')
_ERROR_OBJECT_BYTES = 64


class Format(StrEnum):
    """What the body of an answer is."""

    EVENTS = "events"
    JSON = "json"
    ERROR = "error"
    """JSON that describes an error, on a route whose answers are not inspected otherwise."""
    OTHER = "other"


class FirstBytes:
    """Finds out what a body is.

    Args:
        content_type: The announced content type, in lower case.
        generates: Whether it answers a chat or text completion: only events or JSON are usable then.

    Attributes:
        format: What the body is; None until it is known.
    """

    def __init__(self, content_type: bytes, *, generates: bool) -> None:
        self._content_type = content_type
        self._generates = generates
        self._data = b""
        self._scanned = 0  # bytes that are insignificant
        self.format: Format | None = None

    def feed(self, data: bytes) -> bytes:
        """Look at more of the body; return what has arrived of it once its format is known.

        Raises:
            CortexError: It is an error in the form of an event, or not usable.
        """
        self._data += data
        self.format = self._find_format(ended=False)
        return self._take()

    def end(self) -> bytes:
        """Decide on what has arrived, as the body ends here; see `feed`."""
        self.format = self._find_format(ended=True)
        return self._take()

    def _take(self) -> bytes:
        if self.format is None:
            return b""
        data, self._data = self._data, b""
        return data

    def _find_format(self, *, ended: bool) -> Format | None:
        if not self._generates:
            return self._find_other(ended=ended)
        if self._data.startswith(b"{"):
            return Format.JSON
        return self._find_generated(ended=ended)

    def _find_generated(self, *, ended: bool) -> Format | None:
        data = self._data
        if data.startswith(b"data:"):
            return self._check_first_event(0, ended=ended)
        insignificant = _INSIGNIFICANT.match(data, self._scanned)
        assert insignificant is not None  # it matches nothing, too
        start = self._scanned = insignificant.end()
        rest = data[start : start + 16]
        if not rest or (rest.startswith(b":") and not ended):
            if ended:
                raise UpstreamFailed("the engine's answer is empty")
            self._forget_comments()
            return None
        if rest.startswith((b"{", b"[")):
            self._data = data[start:]
            return Format.JSON
        if _FIELD.match(rest):
            return self._check_first_event(start, ended=ended)
        if not ended and any(start.startswith(rest) for start in _STARTS):
            return None
        if rest.startswith(b"<"):
            raise UpstreamFailed(
                "the server answered with a web page instead of the model's answer",
                hints=["check the address in cortex.toml, and the proxy in front of the server"],
            )
        if self._content_type.startswith(b"text/event-stream"):
            return Format.EVENTS  # a field of its own
        raise UpstreamFailed(f"the engine's answer is neither JSON nor events: {_quote(data)}")

    def _forget_comments(self) -> None:
        """Drop comments that have gone on for long; until then, clients get them with the first event."""
        if len(self._data) - self._scanned > _MAX_FIRST_EVENT:
            raise UpstreamFailed("the engine's answer begins with a comment without an end")
        if self._scanned > _MAX_FIRST_EVENT:
            self._data, self._scanned = self._data[self._scanned :], 0

    def _check_first_event(self, start: int, *, ended: bool) -> Format | None:
        """Return EVENTS unless the first event is an error or the end; None while it is not complete."""
        data = self._data
        blank = _BLANK_LINE.search(data, start)
        if blank is None and not ended and len(data) - start < _MAX_FIRST_EVENT:
            return None
        end = len(data) if blank is None else blank.start()
        if data.find(b"error", start, end) < 0 and data.find(b"[DONE]", start, end) < 0:
            return Format.EVENTS
        block = data[start:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip(b"\n")
        event = parse_block(block)
        if event is None:
            return Format.EVENTS
        if event.data.strip() == b"[DONE]":
            raise UpstreamFailed("the engine ended its stream without an answer")
        if event.name == "error" or is_error(event.data):
            raise error_from_event(event.data)
        return Format.EVENTS

    def _find_other(self, *, ended: bool) -> Format | None:
        data = self._data.lstrip() if len(self._data) < _ERROR_OBJECT_BYTES else self._data
        if not data:
            if ended:
                raise UpstreamFailed("the engine's answer is empty")
            return None
        if data.startswith(b"{"):
            if _ERROR_OBJECT.match(data):
                return Format.ERROR
            return Format.OTHER if ended or len(data) >= _ERROR_OBJECT_BYTES else None
        if data.startswith(b"<") and self._content_type.startswith(b"text/html"):
            raise UpstreamFailed(
                "the server answered with a web page instead of the model's answer"
            )
        return Format.OTHER


class _Outline(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw()
    object: str | None = None
    choices: msgspec.Raw = msgspec.Raw()


_decode_outline = msgspec.json.Decoder(_Outline).decode
_NO_ERROR = frozenset({b"", b"null", b"false", b'""', b"{}"})


def is_error(data: bytes) -> bool:
    """Return whether a chunk or a whole response is an error instead; OpenRouter sends choices beside it."""
    try:
        outline = _decode_outline(data)
    except (ValueError, RecursionError):
        return False
    return bytes(outline.error) not in _NO_ERROR or (
        outline.object == "error" and bytes(outline.choices) in _NO_ERROR
    )


def _quote(data: bytes) -> str:
    return repr(data[:80].decode("utf-8", "replace"))
