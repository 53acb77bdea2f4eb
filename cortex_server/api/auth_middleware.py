"""ASGI middleware that enforces the scopes of `cortex_server.auth.permissions`."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_common.errors import CortexError
from cortex_server.audit_log import ACTOR
from cortex_server.auth.access_control import AccessControl, Caller
from cortex_server.auth.permissions import DEFAULT_RULE, rule_for
from cortex_server.proxy.routes import ROUTES, suggest_route

KEY = "cortex.key"
"""Entry of the ASGI scope in which routes find the `Key` of the request."""


class AuthMiddleware:
    """Authenticates every request; inference requests never get here, `ProxyRequest` authenticates and counts them.

    Args:
        app: the application to protect.
        access_control: returns the current access control; called for each request.
        error_response: renders an error in the format that the client expects.
    """

    def __init__(
        self,
        app: ASGIApp,
        access_control: Callable[[], AccessControl],
        error_response: Callable[[CortexError, Request], Response],
    ) -> None:
        self._app = app
        self._access_control = access_control
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        client = scope.get("client")
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        rule = rule_for(method, path)
        caller = Caller.from_headers(dict(headers), client[0] if client else None)
        try:
            key = self._access_control().authorize(headers, rule.scopes, caller)
        except CortexError as error:
            # If the base URL is wrong, "lacks the scope operator" would be misleading.
            mistyped = rule is DEFAULT_RULE and path.encode() not in ROUTES
            shown = (suggest_route(path) if mistyped else None) or error
            await self._error_response(shown, Request(scope))(scope, receive, send)
            return
        scope[KEY] = key
        ACTOR.set(key.name)
        await self._app(scope, receive, send)
