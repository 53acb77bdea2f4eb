"""The gateway's OpenAPI document: all routes, those of inference included, with their errors and scopes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from cortex_common.schema.bounds import MAX_NAME_LENGTH
from cortex_common.schema.openapi import (
    API_KEY_HEADER,
    BEARER,
    OPERATION_STATUSES,
    Document,
    Operation,
    complete_document,
)
from cortex_server.auth.permissions import rule_for
from cortex_server.proxy.routes import ROUTES

_DESCRIPTION = """Any request can be answered with 408 or 431 if its head is late or too large, and with 503 while the
gateway stops. Errors are in Anthropic's format on /v1/messages and for clients that send `anthropic-version`."""

_FORMS = frozenset(
    {
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/images/edits",
    }
)

_NAME: Document = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
_TEXT: Document = {"type": "string", "minLength": 1, "pattern": "^[a-z]+$"}
_MESSAGES: Document = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": ["user"]}, "content": _TEXT},
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}
_MAX_TOKENS: Document = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
_FIELDS: dict[str, dict[str, Document]] = {
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": _MAX_TOKENS},
    "/v1/messages/count_tokens": {"messages": _MESSAGES},
    "/v1/responses": {"input": _TEXT},
    "/v1/responses/compact": {"input": _TEXT},
    "/v1/responses/input_tokens": {"input": _TEXT},
}
"""Fields that a route requires besides the model, in their simplest form."""


def use_complete_document(app: FastAPI) -> None:
    """Make the application serve the complete document."""
    generate = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            document = generate()
            for route in ROUTES.values():
                document["paths"].setdefault(route.path, {})["post"] = _inference(route.path)
            document["info"]["description"] = _DESCRIPTION
            app.openapi_schema = complete_document(
                document,
                schemes={"bearer": BEARER, "apiKey": API_KEY_HEADER},
                needs_key=lambda method, path: bool(rule_for(method, path).scopes),
                statuses=_statuses,
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _statuses(method: str, operation: Operation) -> frozenset[int]:
    if "operator" in operation.get("tags", ()):
        return OPERATION_STATUSES
    return OPERATION_STATUSES | {408, 413} if method == "POST" else frozenset()


def _inference(path: str) -> dict[str, Any]:
    kind = "multipart/form-data" if path in _FORMS else "application/json"
    fields = _FIELDS.get(path, {})
    schema: Document = {
        "type": "object",
        "properties": {"model": _NAME, **fields},
        "required": ["model", *fields],
        # The Responses API rejects parameters that it does not know.
        "additionalProperties": not path.startswith("/v1/responses"),
    }
    return {
        "tags": ["inference"],
        "summary": f"POST {path}",
        "description": "The fields that the gateway needs; the rest is as in the APIs of OpenAI and Anthropic.",
        "operationId": f"post{path.replace('/', '_')}",
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {
            "200": {
                "description": "The engine's response, or a stream of it",
                "content": {"application/json": {}, "text/event-stream": {}, "*/*": {}},
            }
        },
    }
