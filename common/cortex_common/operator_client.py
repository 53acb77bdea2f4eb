"""Typed async client of a gateway's operator API (/operator/v1)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import TypeAdapter

from cortex_common.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.http import ControlClient
from cortex_common.operator import LoadModel, ModelAction, UnloadModel

_ACTION = TypeAdapter(ModelAction)


class OperatorClient(ControlClient):
    """Everything that the command and the terminal UI do. Errors: see `ControlClient.call`."""

    async def fleet(self) -> FleetSnapshot:
        """The fleet now."""
        return await self.call(SNAPSHOT, "GET", "/operator/v1/fleet")

    async def fleet_events(self, *, silence_s: float = 15.0) -> AsyncIterator[FleetSnapshot]:
        """The fleet now and after each change; see `ControlClient.events`."""
        async for name, data in self.events("/operator/v1/events", silence_s=silence_s):
            if name == "fleet":
                yield SNAPSHOT.validate_json(data)

    async def load(self, request: LoadModel) -> ModelAction:
        """Have a model loaded; returns once that is under way, or ready when `wait` is set."""
        body = request.model_dump(mode="json", exclude_none=True)
        timeout = request.timeout_s + 10.0 if request.wait else 60.0
        return await self.call(
            _ACTION, "POST", "/operator/v1/models/load", body=body, timeout=timeout
        )

    async def unload(self, request: UnloadModel) -> ModelAction:
        """Drain and end all instances of a model."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(
            _ACTION,
            "POST",
            "/operator/v1/models/unload",
            body=body,
            timeout=request.drain_timeout_s + 130.0,
        )
