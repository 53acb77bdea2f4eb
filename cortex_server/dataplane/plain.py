"""uvicorn's protocol that declines every offer to speak another one, as RFC 9110 (7.8) lets a server do.

Java's HttpClient offers HTTP/2 with its first request, and sends that request's body whatever becomes of the offer.
httptools takes all that follows such a head for the other protocol, so the body was lost. The request is read again
here, without the offer.
"""

from __future__ import annotations

import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class PlainProtocol(HttpToolsProtocol):
    """See the module."""

    _received = b""
    _declining = False

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._received = data
        super().data_received(data)
        self._received = b""

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        offered = self.parser.should_upgrade() and self._get_upgrade() is not None
        self._declining = offered and not self._should_upgrade()
        if not self._declining:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser; without the body of one that carries an offer."""
        if not self._declining:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn while it handles the parser's HttpParserUpgrade, which tells where the head ended."""
        if not self._declining:  # a CONNECT
            super()._unsupported_upgrade_warning()
            return
        offer = sys.exc_info()[1]
        assert isinstance(offer, httptools.HttpParserUpgrade)
        rest = self._received[offer.args[0] :]
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)
