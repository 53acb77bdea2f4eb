"""What Anthropic's clients ask beside messages: the model list, a sign of life, and errors that they can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cortex_common.errors import CortexError
from cortex_common.schema.fleet import ModelView
from cortex_http.headers import request_id
from cortex_server.dialects.anthropic.errors import error_body
from cortex_server.dialects.anthropic.models import Served, entry_body, page_body

_JSON = "application/json"


def reads(request: Request) -> bool:
    """Whether the client reads Anthropic's shapes; `x-api-key` alone is how older ones send their key."""
    return "anthropic-version" in request.headers or "x-api-key" in request.headers


def speaks(request: Request) -> bool:
    """Whether an error is to be in Anthropic's shape: on its routes, and for those who name its version."""
    path = request.url.path
    return path.startswith("/v1/messages") or "anthropic-version" in request.headers


def refusal(error: CortexError, headers: Mapping[str, str]) -> Response:
    """The answer that carries an error."""
    ident = request_id({}).decode()
    status, body = error_body(error, ident)
    return Response(body, status, headers={**headers, "request-id": ident}, media_type=_JSON)


def served(view: ModelView, name: str, created: float) -> Served:
    """A model under the name that the client knows."""
    return Served(name, created=created, context=view.context)


def page(
    models: Sequence[Served], *, limit: int | None, after_id: str | None, before_id: str | None
) -> Response:
    """GET /v1/models."""
    body = page_body(models, limit=limit, after_id=after_id, before_id=before_id)
    return Response(body, media_type=_JSON)


def one(model: Served) -> Response:
    """GET /v1/models/{id}."""
    return Response(entry_body(model), media_type=_JSON)


def hello_router() -> APIRouter:
    """What Claude Code asks when it starts, without credentials; any quick answer will do."""
    router = APIRouter(tags=["health"])

    async def hello() -> Response:
        """The gateway is here: 200 without a body."""
        return Response()

    for method, path in product(("GET", "HEAD"), ("/", "/api/hello")):
        router.add_api_route(path, hello, methods=[method])
    return router
