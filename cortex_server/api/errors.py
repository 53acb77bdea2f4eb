"""Errors of the FastAPI side, each in the shape that its client reads."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from cortex_common.errors import BadRequest, CortexError, NotFound, envelope_bytes
from cortex_http.headers import error_headers
from cortex_server.api import anthropic
from cortex_server.proxy.routes import suggest_route

log = logging.getLogger("cortex.api")


def install(app: FastAPI) -> None:
    """Make every error of the app, ours or the framework's, one of our answers with the right status."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)


def response(error: CortexError, request: Request, status: int | None = None) -> Response:
    """The answer that carries an error.

    Args:
        error: what went wrong.
        request: whose client reads it.
        status: where it is not the error's own.
    """
    headers = {n.decode(): v.decode() for n, v in error_headers(error)}
    if anthropic.speaks(request):
        return anthropic.refusal(error, headers)
    return Response(
        envelope_bytes(error),
        status or error.status,
        headers=headers,
        media_type="application/json",
    )


async def _cortex_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return response(error, request)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(where) or None
    what = first.get("ctx", {}).get("error", first["msg"])
    return response(BadRequest(f"{param or 'body'}: {what}", param=param), request)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        found = suggest_route(path) or NotFound(
            f"there is no {path} here", hints=["GET /openapi.json lists the routes"]
        )
        return response(found, request)
    if error.status_code == 405:
        refused = BadRequest(f"{path} does not take {request.method}")
        return response(refused, request, 405)
    return response(BadRequest(str(error.detail)), request, error.status_code)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return response(CortexError("the gateway failed; its log says how"), request)


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    CortexError: _cortex_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    Exception: _unexpected,
}
"""What each kind of error becomes, for any application of Starlette's."""
