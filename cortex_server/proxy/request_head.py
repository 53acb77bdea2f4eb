"""The head of an inference request, and what the proxy knows of its route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from cortex_common.errors import CortexError
from cortex_http.headers import Headers, lines
from cortex_server.auth.access_control import CREDENTIAL_HEADERS, Caller
from cortex_server.proxy.adapters.base import DialectAdapter, openai_error
from cortex_server.proxy.headers import TO_ENGINE
from cortex_server.proxy.response_store import OwnResponses

_SESSION = (b"x-cortex-session", b"x-claude-code-session-id", b"session-id")
"""Headers that identify a conversation, the explicit one first; the others are Claude Code's and Codex's."""


ReadRequest = Callable[["RequestHead", bytes, bytes, OwnResponses], DialectAdapter]
"""Creates the adapter of a request from its head, id and body, and the stored responses of its key; raises CortexError
for an invalid request."""


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route.

    Attributes:
        path: Path as requested by clients.
        read: Creates the adapter of a request.
        error_response: Returns an error, given a request's id, as status and body in the route's dialect.
        id_lines: Header lines of a response for the request's id, which replaces the question mark.
    """

    path: str
    read: ReadRequest
    error_response: Callable[[CortexError, bytes], tuple[int, bytes]] = field(
        default=lambda error, _ident: openai_error(error)
    )
    id_lines: bytes = b"x-request-id: ?\r\n"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of an inference request; requests whose heads differ only in the body's length share one.

    Attributes:
        route: The requested route.
        query: Query string of the URL.
        headers: Headers by name in lower case, without the body's length.
        credentials: Headers that access control looks at.
        caller: Who sent it.
        forwarded: Headers that the engine gets, as lines.
        session: Id of the conversation; empty when no header identifies one.
        form: Whether the body is a form instead of JSON.
        connection: Number of the WebSocket that the request came through; 0 if none.
    """

    route: Route
    query: bytes
    headers: dict[bytes, bytes]
    credentials: Headers
    caller: Caller
    forwarded: bytes
    session: bytes
    form: bool
    connection: int = 0

    @classmethod
    def from_headers(
        cls, route: Route, query: bytes, headers: Headers, peer: str | None
    ) -> RequestHead:
        """Read a head.

        Args:
            route: The requested route.
            query: Query string of the URL.
            headers: Headers with names in lower case.
            peer: IP address of the client, or `OPERATOR_SOCKET`.
        """
        by_name = dict(headers)
        by_name.pop(b"content-length", None)
        return cls(
            route,
            query,
            by_name,
            [h for h in headers if h[0] in CREDENTIAL_HEADERS],
            Caller.from_headers(by_name, peer),
            lines([h for h in headers if h[0] in TO_ENGINE and not _is_overridden(h, by_name)]),
            next((by_name[name] for name in _SESSION if name in by_name), b""),
            by_name.get(b"content-type", b"").lower().startswith(b"multipart/"),
        )

    @property
    def model_in_query(self) -> str | None:
        """Model named in the query string, if any."""
        if self.query.find(b"model=") < 0:
            return None
        return parse_qs(self.query.decode("latin-1")).get("model", [None])[0]


def _is_overridden(header: tuple[bytes, bytes], by_name: dict[bytes, bytes]) -> bool:
    """Return whether this is another Content-Type than the one that the body is read by."""
    return header[0] == b"content-type" and header[1] != by_name[header[0]]
