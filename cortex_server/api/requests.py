"""The operator API's routes for requests: which there are, and ending one. Thin."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from cortex_common.schema.requests import RequestList, RequestView
from cortex_server.proxy.access_log import KEPT
from cortex_server.proxy.inflight import InflightRequests


def requests_router(inflight: InflightRequests) -> APIRouter:
    """The routes under /operator/v1/requests.

    Args:
        inflight: The requests in flight.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/requests", summary="Requests under way and the last that ended")
    async def list_requests(
        last: Annotated[int, Query(ge=0, description="At most so many that ended")] = KEPT,
    ) -> RequestList:
        """Who asked for what, how far it is, and how long each part took; no text of anybody's."""
        return inflight.list(last)

    @router.post("/requests/{ident:path}/cancel", summary="End a request")
    async def cancel(ident: str) -> RequestView:
        """Tells its client that an operator ended it, and its engine to stop. A unique beginning of an id will do."""
        return inflight.cancel(ident)

    return router
