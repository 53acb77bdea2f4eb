"""Whether the gateway lives, and whether it can serve."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Response

from cortex_common import __version__
from cortex_common.schema.base import Wire
from cortex_common.schema.fleet import NodeState
from cortex_server.fleet.state import Fleet


class HealthAnswer(Wire):
    """GET /health and GET /ready.

    Attributes:
        status: "ok" with all nodes up, "degraded" with some, "unavailable" with none.
        nodes_up: nodes that answer.
        nodes: nodes of the configuration.
    """

    status: str
    nodes_up: int
    nodes: int
    version: str = __version__


def health_router(fleet: Fleet, stopping: Callable[[], bool]) -> APIRouter:
    """Routes that need no key: load balancers and probes ask them.

    Args:
        fleet: whose nodes count.
        stopping: whether new requests are sent away.
    """
    router = APIRouter(tags=["health"])

    def look() -> HealthAnswer:
        states = [fleet.state(name) for name in fleet.entries]
        up = sum(state is NodeState.UP for state in states)
        status = "ok" if up == len(states) and up else "degraded" if up else "unavailable"
        return HealthAnswer(status=status, nodes_up=up, nodes=len(states))

    @router.get("/health")
    async def health() -> HealthAnswer:
        """The gateway lives: always 200."""
        return look()

    @router.get("/ready", responses={503: {"model": HealthAnswer}})
    async def ready(response: Response) -> HealthAnswer:
        """200 when at least one node can be used and the gateway is not about to end, else 503."""
        answer = look()
        if not answer.nodes_up or stopping():
            response.status_code = 503
        return answer

    # As `wget --spider` and some monitors ask.
    for path, answer in (("/health", health), ("/ready", ready)):
        router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    return router
