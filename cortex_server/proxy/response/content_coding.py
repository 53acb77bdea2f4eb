"""Decoding of compressed answers. Engines are asked not to compress, but some proxies in front of them do."""

from __future__ import annotations

import zlib
from typing import Protocol

from typing_extensions import override

from cortex_common.errors import UpstreamFailed
from cortex_http.headers import Headers

MAX_DECODED = 64 * 1024 * 1024
"""Bytes that one read of the socket can expand to: more is an attack, as even text does not shrink to a thousandth."""

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_RAW_DEFLATE = -zlib.MAX_WBITS
_HEADER_BYTES = 2


class Decoder(Protocol):
    """Undoes a content coding piece by piece."""

    def decode(self, data: bytes) -> bytes:
        """Return the decoded bytes of a piece.

        Raises:
            UpstreamFailed: The data is damaged, or expands too much.
        """
        ...

    def end(self) -> None:
        """Check that the data is complete.

        Raises:
            UpstreamFailed: It is not.
        """
        ...


class DeflateDecoder(Decoder):
    """Decodes gzip and deflate; the latter with or without a zlib header, because servers disagree on it."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._header: bytes | None = b""  # None once it has been looked at

    @override
    def decode(self, data: bytes) -> bytes:
        if self._header is not None:
            data = self._header + data
            if len(data) < _HEADER_BYTES:
                self._header = data
                return b""
            self._header = None
            if not _has_header(data):
                self._inflate = zlib.decompressobj(_RAW_DEFLATE)
        decoded: list[bytes] = []
        size = 0
        while data:
            try:
                decoded.append(self._inflate.decompress(data, MAX_DECODED))
            except zlib.error as failed:
                raise UpstreamFailed(
                    f"the engine's compressed answer is damaged: {failed}"
                ) from None
            size += len(decoded[-1])
            if size > MAX_DECODED or self._inflate.unconsumed_tail:
                raise UpstreamFailed("the engine's compressed answer expands too much")
            data = self._inflate.unused_data
            if data:  # gzip allows several members
                self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        return b"".join(decoded)

    @override
    def end(self) -> None:
        if not self._inflate.eof:
            raise UpstreamFailed("the engine's compressed answer is incomplete")


def _has_header(data: bytes) -> bool:
    """Return whether data begins with a header of gzip (RFC 1952, 2.3.1) or zlib (RFC 1950, 2.2)."""
    if data.startswith(b"\x1f\x8b"):
        return True
    return data[0] & 0x0F == 8 and (data[0] * 256 + data[1]) % 31 == 0


def find_decoder(headers: Headers) -> Decoder | None:
    """Return the decoder of a response's content coding; None for a plain one.

    Raises:
        UpstreamFailed: The coding is not supported.
    """
    codings = [
        coding
        for name, value in headers
        if name == b"content-encoding"
        for coding in value.decode("latin-1").lower().replace(" ", "").split(",")
        if coding not in {"", "identity"}
    ]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in {"gzip", "x-gzip", "deflate"}:
        raise UpstreamFailed(
            f"the engine compressed its answer ({', '.join(codings)}) although it was asked not to",
            hints=["turn off compression in the server, or in the proxy in front of it"],
        )
    return DeflateDecoder()
