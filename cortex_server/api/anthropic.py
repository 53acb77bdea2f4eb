"""What Anthropic's clients request besides messages: models, a reachability check, and errors in their format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cortex_common.errors import CortexError
from cortex_common.schema.fleet import ModelView
from cortex_server.dialects.anthropic import errors
from cortex_server.dialects.anthropic.models import ServedModel, encode_model, encode_model_page
from cortex_server.proxy.headers import request_id

_JSON = "application/json"


def expects_anthropic_models(request: Request) -> bool:
    """Return whether the client expects Anthropic's model list; older clients send nothing but `x-api-key`."""
    return "anthropic-version" in request.headers or "x-api-key" in request.headers


def expects_anthropic_errors(request: Request) -> bool:
    """Return whether the client expects Anthropic's errors: on its routes, or if it sends `anthropic-version`."""
    path = request.url.path
    return path.startswith("/v1/messages") or "anthropic-version" in request.headers


def error_response(
    error: CortexError, headers: Mapping[str, str], status: int | None = None
) -> Response:
    """Return an error in Anthropic's format, with the error's own status unless another is given."""
    ident = request_id({}).decode()
    own_status, body = errors.error_response(error, ident)
    return Response(
        body, status or own_status, headers={**headers, "request-id": ident}, media_type=_JSON
    )


def served_model(view: ModelView, name: str, created: float) -> ServedModel:
    """Return a model under the name that the client may use."""
    return ServedModel(name, created=created, context=view.context)


def models_response(
    models: Sequence[ServedModel], *, limit: int | None, after_id: str | None, before_id: str | None
) -> Response:
    """Return the response to GET /v1/models."""
    body = encode_model_page(models, limit=limit, after_id=after_id, before_id=before_id)
    return Response(body, media_type=_JSON)


def model_response(model: ServedModel) -> Response:
    """Return the response to GET /v1/models/{id}."""
    return Response(encode_model(model), media_type=_JSON)


def hello_router() -> APIRouter:
    """Return the routes that Claude Code requests at startup, without credentials; any quick response satisfies it."""
    router = APIRouter(tags=["health"])

    async def hello() -> Response:
        """Respond with 200 and an empty body."""
        return Response()

    for method, path in product(("GET", "HEAD"), ("/", "/api/hello")):
        ident = f"hello_{path.strip('/') or 'root'}_{method}".replace("/", "_").lower()
        router.add_api_route(
            path, hello, methods=[method], response_class=Response, operation_id=ident
        )
    return router
