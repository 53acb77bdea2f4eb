"""ASGI middleware that limits the bodies of control requests; inference requests have `max_body_mb`."""

from __future__ import annotations

from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_common.errors import BodyTooLarge, CortexError

MAX_CONTROL_BODY_BYTES = 64 * 1024
"""Largest body of a control request: names, numbers and flags."""


def control_body_too_large() -> BodyTooLarge:
    """Return the error for a larger body."""
    return BodyTooLarge(
        f"the body is larger than {MAX_CONTROL_BODY_BYTES // 1024} KiB, the limit of this route",
        details={"limit_bytes": MAX_CONTROL_BODY_BYTES},
    )


class BodyLimitMiddleware:
    """Rejects larger bodies by their announced length, or once that much has arrived.

    Args:
        app: the application to protect.
        error_response: renders an error in the format that the client expects.
    """

    def __init__(
        self, app: ASGIApp, error_response: Callable[[CortexError, Request], Response]
    ) -> None:
        self._app = app
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced[:20]) > MAX_CONTROL_BODY_BYTES:
            response = self._error_response(control_body_too_large(), Request(scope))
            await response(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_CONTROL_BODY_BYTES:
                # FastAPI would turn any other exception into a 400.
                raise HTTPException(BodyTooLarge.status)
            return message

        await self._app(scope, receive_limited, send)
