"""Liveness and readiness probes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from cortex_common import __version__
from cortex_common.schema.base import WireModel
from cortex_common.schema.fleet import NodeState
from cortex_server.fleet.state import Fleet


class HealthStatus(WireModel):
    """Response to GET /health and GET /ready.

    Attributes:
        status: "ok" if all nodes are up, "degraded" if some are, "unavailable" if none is.
        nodes_up: number of nodes that are up.
        nodes: number of configured nodes.
        version: version of cortex.
    """

    status: str
    nodes_up: int
    nodes: int
    version: str = __version__


def health_router(fleet: Fleet, is_stopping: Callable[[], bool]) -> APIRouter:
    """Return the probe routes, which need no key.

    Args:
        fleet: the live state of the fleet.
        is_stopping: returns whether the gateway rejects new requests because it is stopping.
    """
    router = APIRouter(tags=["health"])

    def current_status() -> HealthStatus:
        states = [fleet.state(name) for name in fleet.entries]
        up = sum(state is NodeState.UP for state in states)
        status = "ok" if up == len(states) and up else "degraded" if up else "unavailable"
        return HealthStatus(status=status, nodes_up=up, nodes=len(states))

    @router.get("/health")
    async def health() -> HealthStatus:
        """Report liveness: always 200."""
        return current_status()

    @router.get("/ready", responses={503: {"model": HealthStatus}})
    async def ready(response: Response) -> HealthStatus:
        """Report readiness: 200 if at least one node is up and the gateway is not stopping, otherwise 503."""
        status = current_status()
        if not status.nodes_up or is_stopping():
            response.status_code = 503
        return status

    # `wget --spider` and some monitoring tools send HEAD.
    for path, handler in (("/health", health), ("/ready", ready)):
        router.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)
    return router
