"""GET and DELETE /v1/responses/{id}: the stored responses of the Responses API, each for the key that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cortex_common.errors import NotFound
from cortex_common.schema.base import WireModel
from cortex_server.api.auth_middleware import KEY
from cortex_server.dialects.responses.history import shorten
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.response_store import OwnResponses, StoredResponse


class DeletedResponse(WireModel):
    """A response that was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(WireModel):
    """The items of a request."""

    object: Literal["list"] = "list"
    data: tuple[Mapping[str, Any], ...]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


def responses_router(context: Callable[[], ProxyContext]) -> APIRouter:
    """Return the routes of stored responses.

    Args:
        context: returns the shared state of the proxy; called for each request.
    """
    router = APIRouter(tags=["responses"])

    def own(request: Request) -> OwnResponses:
        return context().responses.of(request.scope[KEY])

    @router.get("/v1/responses/{response_id}")
    async def get_response(response_id: str, request: Request) -> Response:
        """Return a stored response. The gateway keeps recent responses in memory."""
        return Response(_find(own(request), response_id).body, media_type="application/json")

    @router.delete("/v1/responses/{response_id}", response_model=DeletedResponse)
    async def delete_response(response_id: str, request: Request) -> DeletedResponse:
        """Forget a stored response."""
        if not own(request).delete(response_id):
            raise _not_found(response_id)
        return DeletedResponse(id=response_id)

    @router.get("/v1/responses/{response_id}/input_items", response_model=ItemList)
    async def list_input_items(response_id: str, request: Request) -> ItemList:
        """Return the items of the request of a stored response, the latest first."""
        found = _find(own(request), response_id)
        suffix = response_id.removeprefix("resp_")
        items = [
            {"id": f"in_{suffix}_{position}"} | json.loads(item)
            for position, item in reversed(list(enumerate(found.input)))
        ]
        ids = [item["id"] for item in items] or [None]
        return ItemList(data=tuple(items), first_id=ids[0], last_id=ids[-1])

    return router


def _find(own: OwnResponses, response_id: str) -> StoredResponse:
    found = own.get(response_id)
    if found is None:
        raise _not_found(response_id)
    return found


def _not_found(response_id: str) -> NotFound:
    return NotFound(
        f"there is no response {shorten(response_id)}",
        hints=["the gateway keeps recent responses in memory, each for the key that made it"],
    )
