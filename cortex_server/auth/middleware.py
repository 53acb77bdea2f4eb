"""Holds the application's routes to the table of rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cortex_common.errors import CortexError
from cortex_server.audit_log import ACTOR
from cortex_server.auth.access_control import AccessControl, is_own
from cortex_server.auth.permissions import OTHERWISE, rule_for
from cortex_server.proxy.routes import ROUTES, suggest_route

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "cortex.key"
"""Where routes find the caller's `Key` in their scope."""


class AuthMiddleware:
    """ASGI middleware.

    Inference routes pass: `Exchange` checks them itself, whichever face they come through, and counts them.

    Args:
        app: what is guarded.
        gate: returns the gate; called for each request, because the application is built before it.
        refusal: the answer that carries an error, as the client of the request reads it.
    """

    def __init__(
        self,
        app: App,
        access_control: Callable[[], AccessControl],
        refusal: Callable[[CortexError, Request], Response],
    ) -> None:
        self._app = app
        self._access_control = access_control
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        inference = path.encode() in ROUTES
        if method != "POST" or not inference:
            client = scope.get("client")
            headers = [(name.lower(), value) for name, value in scope["headers"]]
            rule = rule_for(method, path)
            try:
                own = is_own(client[0] if client else None, headers)
                key = self._access_control().check(headers, rule.scopes, own=own)
                scope[KEY] = key
                ACTOR.set(key.name)
            except CortexError as refused:
                # Of a base URL that lacks its /v1, "needs the scope operator" would say the wrong thing.
                wrong = rule is OTHERWISE and not inference
                told = (suggest_route(path) if wrong else None) or refused
                await self._refusal(told, Request(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)
