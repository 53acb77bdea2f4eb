"""Cross-origin resource sharing (CORS): lets scripts of web pages use the API from a browser."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class CorsMiddleware:
    """ASGI middleware: Starlette's CORS middleware, with origins that can change at run time.

    Preflight requests of all routes come here. Inference responses get their CORS headers from the proxy.

    Args:
        app: the application to wrap.
        allowed_origins: returns the origins that are allowed; an asterisk stands for all.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Callable[[], tuple[str, ...]]) -> None:
        self._app = app
        self._allowed_origins = allowed_origins
        self._origins: tuple[str, ...] = ()
        self._wrapped = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if (origins := self._allowed_origins()) != self._origins:
            self._origins, self._wrapped = origins, _wrap(self._app, origins)
        await self._wrapped(scope, receive, send)


def _wrap(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("*",),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=("*",),
    )
