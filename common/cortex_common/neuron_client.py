"""Typed async client of a neuron (port 9090)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

from pydantic import TypeAdapter

from cortex_common.hardware import Discovery, Health
from cortex_common.http import ControlClient
from cortex_common.models import (
    EndpointAnswer,
    LoadAnswer,
    LoadSpec,
    ModelInfo,
    NodeStatus,
    UnloadAnswer,
    UnloadRequest,
)

_DISCOVERY = TypeAdapter(Discovery)
_HEALTH = TypeAdapter(Health)
_MODELS = TypeAdapter(tuple[ModelInfo, ...])
_LOAD = TypeAdapter(LoadAnswer)
_UNLOAD = TypeAdapter(UnloadAnswer)
_ENDPOINT = TypeAdapter(EndpointAnswer)
_STATUS = TypeAdapter(NodeStatus)


class NeuronClient(ControlClient):
    """The calls of the requirements and /events. Errors: see `ControlClient.call`."""

    async def discovery(self) -> Discovery:
        """What the host is."""
        return await self.call(_DISCOVERY, "GET", "/discovery")

    async def health(self) -> Health:
        """The latest reading."""
        return await self.call(_HEALTH, "GET", "/health")

    async def models(self) -> tuple[ModelInfo, ...]:
        """Its instances."""
        return await self.call(_MODELS, "GET", "/models")

    async def load(self, spec: LoadSpec) -> LoadAnswer:
        """Ask for an instance; returns once it is admitted, not once it is ready.

        Raises:
            DoesNotFit: the node's ledger refuses; details carry needed_mb and the devices' numbers.
            Conflict: this instance id runs with another spec.
        """
        body = spec.model_dump(mode="json", exclude_defaults=True)
        return await self.call(_LOAD, "POST", "/models/load", body=body, timeout=60.0)

    async def unload(self, request: UnloadRequest) -> UnloadAnswer:
        """End instances; returns once their memory is measured free."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(
            _UNLOAD,
            "POST",
            "/models/unload",
            body=body,
            timeout=request.drain_seconds + 120.0,
        )

    async def endpoint(self, model_id: str) -> EndpointAnswer:
        """Where the model's inference requests go."""
        return await self.call(_ENDPOINT, "GET", f"/models/{quote(model_id)}/endpoint")

    async def status_events(self, *, silence_s: float = 10.0) -> AsyncIterator[NodeStatus]:
        """The node's status now and after each change; see `ControlClient.events`."""
        async for name, data in self.events("/events", silence_s=silence_s):
            if name == "status":
                yield _STATUS.validate_json(data)
