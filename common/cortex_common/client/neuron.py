"""Typed async client of a neuron (port 9090)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from pydantic import TypeAdapter

from cortex_common.client.control import Bookmark, ControlClient, in_path
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import (
    AttachedEngine,
    EndpointAnswer,
    LifecycleEntry,
    LoadAnswer,
    LoadSpec,
    ModelInfo,
    NodeStatus,
    RestartAnswer,
    RestartRequest,
    UnloadAnswer,
    UnloadRequest,
)

_DISCOVERY = TypeAdapter(Discovery)
_HEALTH = TypeAdapter(Health)
_MODELS = TypeAdapter(tuple[ModelInfo, ...])
_LOAD = TypeAdapter(LoadAnswer)
_UNLOAD = TypeAdapter(UnloadAnswer)
_ENDPOINT = TypeAdapter(EndpointAnswer)
_ATTACHED = TypeAdapter(tuple[AttachedEngine, ...])
_RESTART = TypeAdapter(RestartAnswer)
_STATUS = TypeAdapter(NodeStatus)
_ENTRY = TypeAdapter(LifecycleEntry)


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

    async def load(self, spec: LoadSpec, known: Collection[str] | None = None) -> LoadAnswer:
        """Ask for an instance; returns once it is admitted, not once it is ready.

        Args:
            spec: which.
            known: the copies of the model that it comes on top of; another that does the same work is the answer.

        Raises:
            DoesNotFit: the node's ledger refuses; details carry needed_mb and the devices' numbers.
            Conflict: this instance id runs with another spec.
        """
        body = spec.model_dump(mode="json", exclude_defaults=True)
        query = "" if known is None else f"?known={','.join(sorted(known))}"
        return await self.call(_LOAD, "POST", f"/models/load{query}", body=body, timeout=60.0)

    async def unload(self, request: UnloadRequest) -> UnloadAnswer:
        """End instances; returns once their memory is measured free.

        Raises:
            StillBusy: one has requests under way after `drain_seconds`, and `cut` is off.
        """
        body = request.model_dump(mode="json", exclude_defaults=True)
        return await self.call(
            _UNLOAD,
            "POST",
            "/models/unload",
            body=body,
            timeout=request.drain_seconds + 120.0,
        )

    async def endpoint(self, model_id: str) -> EndpointAnswer:
        """Where the model's inference requests go."""
        return await self.call(_ENDPOINT, "GET", f"/models/{in_path(model_id)}/endpoint")

    async def attached(self) -> tuple[AttachedEngine, ...]:
        """Its engines that someone else runs."""
        return await self.call(_ATTACHED, "GET", "/harnesses")

    async def restart(
        self,
        harness: str,
        request: RestartRequest,
        *,
        timeout_s: float = 1920.0,
    ) -> RestartAnswer:
        """Restart an attached engine; returns once it lists its models again. A repeat joins the one under way.

        Raises:
            NotFound: the node has no such harness.
            NotSupported: it is not attached, or the node knows no unit to restart.
            Conflict: a load or unload is under way in it; StillBusy: it is computing, and `cut` is off.
            LoadFailed: systemd refused, or the engine did not come back.
        """
        return await self.call(
            _RESTART,
            "POST",
            f"/harnesses/{in_path(harness)}/restart",
            body=request.model_dump(mode="json", exclude_defaults=True),
            timeout=timeout_s,
        )

    async def status_events(self, *, silence_s: float = 10.0) -> AsyncIterator[NodeStatus]:
        """The node's status now and after each change; see `ControlClient.events`."""
        async for news in self.news(silence_s=silence_s):
            if isinstance(news, NodeStatus):
                yield news

    async def news(
        self, *, silence_s: float = 10.0, bookmark: Bookmark | None = None
    ) -> AsyncIterator[NodeStatus | LifecycleEntry]:
        """`status_events`, and what the node decided or saw happen; with a bookmark also what was missed."""
        async for name, data in self.events("/events", silence_s=silence_s, bookmark=bookmark):
            if name == "status":
                yield _STATUS.validate_json(data)
            elif name == "lifecycle":
                yield _ENTRY.validate_json(data)

    @asynccontextmanager
    async def log(
        self, model_id: str, instance: str, *, lines: int, follow: bool
    ) -> AsyncIterator[AsyncIterator[str]]:
        """What an instance's engine wrote, piece by piece; see `ControlClient.text`."""
        params = {"instance_id": instance, "lines": str(lines), "follow": str(follow).lower()}
        async with self.text(f"/models/{in_path(model_id)}/logs", params) as pieces:
            yield pieces

    @asynccontextmanager
    async def own_log(self, *, lines: int, follow: bool) -> AsyncIterator[AsyncIterator[str]]:
        """What the neuron itself logged, as `daemon_log.LogLine`s; see `ControlClient.text`."""
        params = {"lines": str(lines), "follow": str(follow).lower()}
        async with self.text("/logs", params) as pieces:
            yield pieces
