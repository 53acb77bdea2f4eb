"""What the head of an inference request says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from cortex_http.client import Headers
from cortex_http.headers import TO_ENGINE
from cortex_server.auth.access_control import CREDENTIAL_HEADERS, is_local_request

if TYPE_CHECKING:
    from cortex_server.proxy.routes import Route

_SESSION = (b"x-cortex-session", b"x-claude-code-session-id", b"session-id")
"""Headers that name a conversation, the explicit one first; the others are Claude Code's and Codex's."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """See the module. Requests whose heads differ in nothing but the body's length share one.

    Attributes:
        route: that is asked for.
        query: of its URL.
        named: its headers by name, in lower case, without the body's length.
        credentials: those of them that the gate looks at.
        local: whether it was made by a program on this host.
        passed: those of them that an engine gets, as lines.
        session: the conversation that they name; empty where they name none.
        form: the body is a form, not JSON.
    """

    route: Route
    query: bytes
    named: dict[bytes, bytes]
    credentials: Headers
    local: bool
    passed: bytes
    session: bytes
    form: bool

    @classmethod
    def of(
        cls, route: Route, query: bytes, headers: Headers, peer: str | None
    ) -> tuple[RequestHead, int | None]:
        """A head's words, and the length of the body, where it states one.

        Args:
            route: that is asked for.
            query: of the URL.
            headers: with names in lower case.
            peer: the caller's IP address.
        """
        named = dict(headers)
        length = named.pop(b"content-length", b"")
        head = cls(
            route,
            query,
            named,
            [h for h in headers if h[0] in CREDENTIAL_HEADERS],
            is_local_request(peer, headers),
            b"".join([b"%b: %b\r\n" % h for h in headers if h[0] in TO_ENGINE]),
            next((named[name] for name in _SESSION if name in named), b""),
            named.get(b"content-type", b"").lower().startswith(b"multipart/"),
        )
        return head, int(length) if length.isdigit() else None

    @property
    def model_in_query(self) -> str | None:
        """The model named in the query, if any."""
        if self.query.find(b"model=") < 0:
            return None
        return parse_qs(self.query.decode("latin-1")).get("model", [None])[0]
