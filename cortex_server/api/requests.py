"""Operator routes for requests: list them and cancel one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from cortex_common.schema.bounds import MAX_INT
from cortex_common.schema.operation import OPERATOR_PREFIX
from cortex_common.schema.operations import CANCEL
from cortex_common.schema.requests import CancelRequest, RequestList, RequestView
from cortex_server.api.operator import add_operation
from cortex_server.proxy.access_log import KEPT
from cortex_server.proxy.inflight import InflightRequests


def requests_router(inflight: InflightRequests) -> APIRouter:
    """Return the routes under /operator/v1/requests.

    Args:
        inflight: the requests in flight and recently finished.
    """
    router = APIRouter(prefix=OPERATOR_PREFIX, tags=["operator"])

    @router.get("/requests", summary="Requests in flight and recently finished")
    async def list_requests(
        limit: Annotated[
            int, Query(ge=0, le=MAX_INT, description="Maximum number of finished requests")
        ] = KEPT,
    ) -> RequestList:
        """Return the key, model, state and timings of each request, never its content."""
        return inflight.list(limit)

    async def cancel(request: CancelRequest) -> RequestView:
        return inflight.cancel(request.request)

    add_operation(router, CANCEL, cancel)
    return router
