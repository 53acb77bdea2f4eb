"""What the screen can do to the fleet."""

from __future__ import annotations

from typing import Protocol

from cortex_cli.client import connect
from cortex_common.operator import LoadModel, ModelAction, UnloadModel


class Operator(Protocol):
    """The verbs of the operator API that keys are bound to."""

    async def load(self, request: LoadModel) -> ModelAction:
        """Have a model loaded."""
        ...

    async def unload(self, request: UnloadModel) -> ModelAction:
        """Drain and end all instances of a model."""
        ...


class GatewayOperator:
    """A gateway; each call has a connection of its own, so that a lost one spoils nothing.

    Args:
        gateway: URL or context; see `client.target`.
    """

    def __init__(self, gateway: str | None) -> None:
        self._gateway = gateway

    async def load(self, request: LoadModel) -> ModelAction:
        """See `Operator.load`."""
        async with connect(self._gateway) as client:
            return await client.load(request)

    async def unload(self, request: UnloadModel) -> ModelAction:
        """See `Operator.unload`."""
        async with connect(self._gateway) as client:
            return await client.unload(request)
