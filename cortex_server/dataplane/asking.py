"""What the head of an inference request says."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_server.auth.gate import LOOKED_AT
from cortex_server.dataplane.headers import TO_ENGINE
from cortex_server.dataplane.routes import Route
from cortex_server.dataplane.upstream import Headers


@dataclass(frozen=True, slots=True)
class Asking:
    """See the module. Requests whose heads differ in nothing but the body's length share one.

    Attributes:
        query: of its URL.
        named: its headers by name, in lower case, without the body's length.
        credentials: those of them that the gate looks at.
        passed: those of them that an engine gets.
    """

    route: Route
    query: bytes
    named: dict[bytes, bytes]
    credentials: Headers
    passed: Headers

    @classmethod
    def of(cls, route: Route, query: bytes, headers: Headers) -> tuple[Asking, int | None]:
        """A head's words, and the length of the body, where it states one; header names are in lower case."""
        named = dict(headers)
        length = named.pop(b"content-length", b"")
        credentials = [h for h in headers if h[0] in LOOKED_AT]
        passed = [h for h in headers if h[0] in TO_ENGINE]
        asking = cls(route, query, named, credentials, passed)
        return asking, int(length) if length.isdigit() else None
