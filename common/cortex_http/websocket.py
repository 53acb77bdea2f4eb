"""The frames of the WebSocket protocol, RFC 6455, as a server reads and writes them. No extension is negotiated."""

from __future__ import annotations

import base64
import hashlib
from enum import IntEnum
from typing import NamedTuple

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTROL = 0x8
_LARGEST_CONTROL = 125


class Opcode(IntEnum):
    """Kinds of frames."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class CloseCode(IntEnum):
    """Reasons for closing a connection."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    TOO_BIG = 1009


class WebSocketError(Exception):
    """The client violates the protocol or a limit.

    Attributes:
        code: the code to close the connection with.
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class WebSocketMessage(NamedTuple):
    """A complete message, or a control frame.

    Attributes:
        opcode: TEXT, BINARY, CLOSE, PING or PONG.
        data: the payload.
    """

    opcode: Opcode
    data: bytes


def accept_key(key: bytes) -> bytes:
    """Return the value of Sec-WebSocket-Accept for that of Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def write_frame(opcode: Opcode, data: bytes) -> bytes:
    """Return a frame with a whole message; servers do not mask."""
    size = len(data)
    first = 0x80 | opcode
    if size < 126:
        head = bytes((first, size))
    elif size < 1 << 16:
        head = bytes((first, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 127)) + size.to_bytes(8, "big")
    return head + data


def write_close(code: CloseCode, reason: str = "") -> bytes:
    """Return the frame that closes a connection."""
    text = reason.encode()[: _LARGEST_CONTROL - 2].decode("utf-8", "ignore").encode()
    return write_frame(Opcode.CLOSE, code.to_bytes(2, "big") + text)


class FrameParser:
    """Parses the bytes of a client into messages. Payloads are unmasked as they arrive, so each call is short.

    Args:
        max_size: bytes of the largest message.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._tail = b""
        self._opcode = Opcode.TEXT  # of the frame whose payload is being read
        self._final = True
        self._missing = 0  # bytes of its payload
        self._mask: bytes | None = None  # set while a payload is being read
        self._control = bytearray()
        self._message = bytearray()
        self._message_opcode: Opcode | None = None  # while a message is incomplete

    def feed(self, data: bytes) -> list[WebSocketMessage]:
        """Return the messages that these bytes complete.

        Raises:
            WebSocketError: the bytes are not what a client may send.
        """
        data = self._tail + data
        position, found = 0, []
        while True:
            if self._mask is None:
                size = self._read_head(data, position)
                if not size:
                    break
                position += size
            piece = data[position : position + self._missing]
            position += len(piece)
            self._add(piece)
            if self._missing:
                break
            self._mask = None
            message = self._finish_frame()
            if message is not None:
                found.append(message)
        self._tail = data[position:]
        return found

    def _read_head(self, data: bytes, start: int) -> int:
        """Read the head of a frame; return its size, or 0 while it is incomplete."""
        if len(data) < start + 2:
            return 0
        first, second = data[start], data[start + 1]
        if first & 0x70 or not second & 0x80:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "reserved bits, or a frame without mask")
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "unknown opcode") from None
        size, extra = second & 0x7F, 0
        if size > _LARGEST_CONTROL:
            extra = 2 if size == 126 else 8
        end = start + 2 + extra + 4
        if len(data) < end:
            return 0
        if extra:
            size = int.from_bytes(data[start + 2 : start + 2 + extra], "big")
        self._check(opcode, size, final=bool(first & 0x80))
        self._opcode, self._final = opcode, bool(first & 0x80)
        self._missing, self._mask = size, data[end - 4 : end]
        return end - start

    def _check(self, opcode: Opcode, size: int, *, final: bool) -> None:
        if opcode & _CONTROL:
            if size > _LARGEST_CONTROL or not final:
                raise WebSocketError(CloseCode.PROTOCOL_ERROR, "a control frame is too long")
            return
        if (opcode is Opcode.CONTINUATION) != (self._message_opcode is not None):
            raise WebSocketError(CloseCode.PROTOCOL_ERROR, "frames of a message are out of order")
        if len(self._message) + size > self._max_size:
            raise WebSocketError(CloseCode.TOO_BIG, f"messages are limited to {self._max_size} B")

    def _add(self, piece: bytes) -> None:
        """Add a piece of the payload; the mask is rotated for the next piece."""
        if not piece:
            return
        mask = self._mask
        assert mask is not None
        size = len(piece)
        key = (mask * (size // 4 + 1))[:size]
        plain = int.from_bytes(piece, "big") ^ int.from_bytes(key, "big")
        target = self._control if self._opcode & _CONTROL else self._message
        target += plain.to_bytes(size, "big")
        turn = size % 4
        self._mask = mask[turn:] + mask[:turn]
        self._missing -= size

    def _finish_frame(self) -> WebSocketMessage | None:
        if self._opcode & _CONTROL:
            data = bytes(self._control)
            self._control.clear()
            return WebSocketMessage(self._opcode, data)
        opcode = self._message_opcode or self._opcode
        if not self._final:
            self._message_opcode = opcode
            return None
        data = bytes(self._message)
        self._message.clear()
        self._message_opcode = None
        return WebSocketMessage(opcode, data)
