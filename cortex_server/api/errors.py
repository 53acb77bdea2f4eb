"""Error responses of the FastAPI routes, each in the format that its client expects."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from cortex_common.errors import BadRequest, CortexError, NotFound, envelope_bytes
from cortex_server.api import anthropic
from cortex_server.proxy.errors import MethodNotAllowed
from cortex_server.proxy.headers import error_headers
from cortex_server.proxy.routes import suggest_route

log = logging.getLogger("cortex.api")

_MAX_SHOWN_PATH = 200


def install(app: FastAPI) -> None:
    """Register handlers that turn every exception of the application into an error response of cortex."""
    for exception, handler in HANDLERS.items():
        app.add_exception_handler(exception, handler)


def error_response(error: CortexError, request: Request, status: int | None = None) -> Response:
    """Return the response for an error.

    Args:
        error: the error.
        request: the request that failed; its client determines the format.
        status: HTTP status, if it differs from the error's own.
    """
    headers = {n.decode(): v.decode() for n, v in error_headers(error)}
    if anthropic.expects_anthropic_errors(request):
        return anthropic.error_response(error, headers, status)
    return Response(
        envelope_bytes(error),
        status or error.status,
        headers=headers,
        media_type="application/json",
    )


async def _cortex_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return error_response(error, request)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(location) or None
    reason = first.get("ctx", {}).get("error", first["msg"])
    return error_response(BadRequest(f"{param or 'body'}: {reason}", param=param), request)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        not_found = suggest_route(path) or NotFound(
            f"there is no route {path[:_MAX_SHOWN_PATH]}",
            hints=["GET /openapi.json lists the routes"],
        )
        return error_response(not_found, request)
    if error.status_code == 405:
        methods = _allowed_methods(request)
        unsupported = MethodNotAllowed(
            f"{path[:_MAX_SHOWN_PATH]} does not support the method {request.method[:20]}",
            hints=[f"it supports {methods}"],
        )
        response = error_response(unsupported, request)
        response.headers["allow"] = methods
        return response
    return error_response(BadRequest(str(error.detail)), request, error.status_code)


def _allowed_methods(request: Request) -> str:
    """Return the methods of all routes with this path; Starlette names those of the first one only."""
    routes = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
    # A route for any model also matches the path of an operation on models, which is what is meant.
    named = [r for r in routes if getattr(r, "path", None) == request.url.path]
    return ", ".join(
        sorted({m for r in named or routes for m in getattr(r, "methods", None) or ()})
    )


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return error_response(CortexError("internal error; see the gateway's log"), request)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    CortexError: _cortex_error,
    RequestValidationError: _validation_error,
    HTTPException: _http_error,
    Exception: _unexpected_error,
}
"""Exception handlers for any Starlette application."""
