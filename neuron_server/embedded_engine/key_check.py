"""The key check of the embedded worker, whose key comes from the environment: others can't read that of a process."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_common.errors import AuthenticationFailed, envelope

KEY_VARIABLE = "CORTEX_ENGINE_KEY"
"""Environment variable with the key; without it, the worker accepts every request."""

_PUBLIC_PATH = "/health"
"""Needs no key, as at llama-server and vLLM."""


class KeyMiddleware:
    """ASGI middleware that requires a key.

    Args:
        app: the application to protect.
        key: what requests must carry as a bearer token.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and scope["path"] != _PUBLIC_PATH:
            sent = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(sent, self._expected):
                error = AuthenticationFailed("this engine is used through a gateway")
                response = JSONResponse(envelope(error), status_code=error.status)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
