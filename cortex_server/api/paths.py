"""Paths of clients whose base URL has no /v1, has it twice, or ends in a slash."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_server.proxy.routes import canonical_path


class PathMiddleware:
    """ASGI middleware: replaces such a path by the one that is served. The proxy does the same for its routes.

    Args:
        app: the application to wrap.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":
            path = canonical_path(scope["path"])
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
