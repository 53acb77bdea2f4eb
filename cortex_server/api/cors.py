"""Lets the scripts of web pages use the API from a browser (CORS)."""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class CorsMiddleware:
    """ASGI middleware: Starlette's, for origins that may change.

    On the hot path `Exchange` says the same on its own; what browsers ask beforehand comes here for all routes.

    Args:
        app: what is used.
        allowed: returns the origins of pages that may; an asterisk stands for all.
    """

    def __init__(self, app: ASGIApp, allowed: Callable[[], tuple[str, ...]]) -> None:
        self._app = app
        self._allowed = allowed
        self._origins: tuple[str, ...] = ()
        self._within = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer a browser that asks whether it may send one."""
        if (origins := self._allowed()) != self._origins:
            self._origins, self._within = origins, _for(origins, self._app)
        await self._within(scope, receive, send)


def _for(origins: tuple[str, ...], app: ASGIApp) -> ASGIApp:
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
