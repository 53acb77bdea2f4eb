"""Completes an OpenAPI document that FastAPI generates: errors as they are sent, and how to authenticate.

FastAPI documents 422 for invalid requests, and no other error; the daemons answer 400, in the format of
`errors.envelope`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from cortex_common.errors import ERRORS_BY_CODE

Document = dict[str, Any]

Operation = dict[str, Any]

ERROR_SCHEMA: Document = {
    "title": "Error",
    "description": "The response of a request that failed.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "src": {"type": "string"},
                "hints": {"type": "array", "items": {"type": "string"}},
            },
        }
    },
}

BEARER: Document = {"type": "http", "scheme": "bearer"}
API_KEY_HEADER: Document = {"type": "apiKey", "in": "header", "name": "x-api-key"}

OPERATION_STATUSES = frozenset({404, 409, 429, 501, 502, 503, 504, 507})
"""Statuses of errors that depend on the state of the fleet, in addition to those of any request."""


def complete_document(
    document: Document,
    *,
    schemes: dict[str, Document],
    needs_key: Callable[[str, str], bool],
    statuses: Callable[[str, Operation], Iterable[int]],
) -> Document:
    """Return the document with security schemes and with all errors of every operation.

    Args:
        document: what FastAPI generated; it is changed.
        schemes: ways to authenticate, by name; any one of them is sufficient.
        needs_key: returns whether a method and path require authentication.
        statuses: returns the statuses of errors that a method and operation have besides those about the request.
    """
    components = document.setdefault("components", {})
    components["securitySchemes"] = schemes
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR_SCHEMA
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            locked = needs_key(method.upper(), path)
            operation["security"] = [{name: []} for name in schemes] if locked else []
            found = {
                *_request_statuses(path, operation),
                *statuses(method.upper(), operation),
            }
            if locked:
                found |= {401, 403}
            operation["responses"].pop("422", None)
            for status in sorted(found):
                operation["responses"].setdefault(str(status), _error_response(status))
    return document


def _request_statuses(path: str, operation: Operation) -> Iterable[int]:
    if operation.get("parameters") or "requestBody" in operation:
        yield 400
    if "requestBody" in operation:
        yield 413
    if "{" in path:
        yield 404


def _error_response(status: int) -> Document:
    codes = sorted(code for code, kind in ERRORS_BY_CODE.items() if kind.status == status)
    return {
        "description": ", ".join(codes) or HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
