"""What the screen can do to the fleet."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from cortex_cli.client import connect
from cortex_cli.logs import log_text
from cortex_common.schema.operations import (
    DrainNode,
    EvictModel,
    LoadModel,
    ModelAction,
    NodeAction,
    PinModel,
    PinView,
    UnloadModel,
    UnpinModel,
)
from cortex_common.schema.plans import (
    ApplyDefrag,
    DefragRequest,
    DefragView,
    DrainPlan,
    PlanLoad,
    PlannedEviction,
    PlanView,
)
from cortex_common.schema.requests import RequestList, RequestView

_LOG_LINES = 1000


class Operator(Protocol):
    """The verbs of the operator API that keys are bound to; see `OperatorClient`."""

    async def plan_load(self, request: PlanLoad) -> PlanView:
        """What would be done to load a model."""
        ...

    async def plan_evict(self, request: EvictModel) -> PlannedEviction:
        """Which instance an eviction would end."""
        ...

    async def plan_drain(self, node: str) -> DrainPlan:
        """What emptying a node would do."""
        ...

    async def load(self, request: LoadModel) -> ModelAction:
        """Have a model loaded."""
        ...

    async def unload(self, request: UnloadModel) -> ModelAction:
        """Drain and end all instances of a model."""
        ...

    async def evict(self, request: EvictModel) -> ModelAction:
        """Drain and end one instance of a model."""
        ...

    async def pin(self, request: PinModel) -> PinView:
        """Protect a model from eviction."""
        ...

    async def unpin(self, request: UnpinModel) -> tuple[PinView, ...]:
        """End the pins of a model."""
        ...

    async def cordon(self, node: str) -> NodeAction:
        """Place no new instances on a node."""
        ...

    async def uncordon(self, node: str) -> NodeAction:
        """Place instances on it again."""
        ...

    async def drain(self, request: DrainNode) -> NodeAction:
        """Cordon a node and move or unload what it has."""
        ...

    async def plan_defrag(self, request: DefragRequest) -> DefragView:
        """Which moves would make a large free block."""
        ...

    async def defrag(self, request: ApplyDefrag) -> DefragView:
        """Make exactly the moves that a plan showed."""
        ...

    async def requests(self, last: int | None) -> RequestList:
        """The requests under way, and those that ended last: at most so many, or all that are kept."""
        ...

    async def cancel(self, request: str) -> RequestView:
        """End a request."""
        ...

    def log(self, name: str) -> AsyncGenerator[str]:
        """What the gateway, a node or a model's engine wrote, and what it writes from now on; see `log_of`."""
        ...


class GatewayOperator:
    """A gateway; each call has a connection of its own, so that a lost one spoils nothing.

    Args:
        gateway: URL or context; see `client.target`.
    """

    def __init__(self, gateway: str | None) -> None:
        self._gateway = gateway

    async def plan_load(self, request: PlanLoad) -> PlanView:
        """See `Operator.plan_load`."""
        async with connect(self._gateway) as client:
            return await client.plan_load(request)

    async def plan_evict(self, request: EvictModel) -> PlannedEviction:
        """See `Operator.plan_evict`."""
        async with connect(self._gateway) as client:
            return await client.plan_evict(request)

    async def plan_drain(self, node: str) -> DrainPlan:
        """See `Operator.plan_drain`."""
        async with connect(self._gateway) as client:
            return await client.plan_drain(node)

    async def load(self, request: LoadModel) -> ModelAction:
        """See `Operator.load`."""
        async with connect(self._gateway) as client:
            return await client.load(request)

    async def unload(self, request: UnloadModel) -> ModelAction:
        """See `Operator.unload`."""
        async with connect(self._gateway) as client:
            return await client.unload(request)

    async def evict(self, request: EvictModel) -> ModelAction:
        """See `Operator.evict`."""
        async with connect(self._gateway) as client:
            return await client.evict(request)

    async def pin(self, request: PinModel) -> PinView:
        """See `Operator.pin`."""
        async with connect(self._gateway) as client:
            return await client.pin(request)

    async def unpin(self, request: UnpinModel) -> tuple[PinView, ...]:
        """See `Operator.unpin`."""
        async with connect(self._gateway) as client:
            return await client.unpin(request)

    async def cordon(self, node: str) -> NodeAction:
        """See `Operator.cordon`."""
        async with connect(self._gateway) as client:
            return await client.cordon(node)

    async def uncordon(self, node: str) -> NodeAction:
        """See `Operator.uncordon`."""
        async with connect(self._gateway) as client:
            return await client.uncordon(node)

    async def drain(self, request: DrainNode) -> NodeAction:
        """See `Operator.drain`."""
        async with connect(self._gateway) as client:
            return await client.drain(request)

    async def plan_defrag(self, request: DefragRequest) -> DefragView:
        """See `Operator.plan_defrag`."""
        async with connect(self._gateway) as client:
            return await client.plan_defrag(request)

    async def defrag(self, request: ApplyDefrag) -> DefragView:
        """See `Operator.defrag`."""
        async with connect(self._gateway) as client:
            return await client.defrag(request)

    async def requests(self, last: int | None) -> RequestList:
        """See `Operator.requests`."""
        async with connect(self._gateway) as client:
            return await client.requests(last)

    async def cancel(self, request: str) -> RequestView:
        """See `Operator.cancel`."""
        async with connect(self._gateway) as client:
            return await client.cancel(request)

    async def log(self, name: str) -> AsyncGenerator[str]:
        """See `Operator.log`."""
        async with (
            connect(self._gateway) as client,
            aclosing(log_text(client, name, lines=_LOG_LINES)) as pieces,
        ):
            async for piece in pieces:
                yield piece
