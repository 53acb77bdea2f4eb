"""Async client of a neuron's API (port 9090)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager, suppress

from pydantic import TypeAdapter

from cortex_common.client.control import ControlClient, EventCursor, quote_path
from cortex_common.errors import UpstreamFailed
from cortex_common.schema.directives import Directive
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import (
    AttachedEngine,
    EndpointResponse,
    ForgetRequest,
    ForgetResponse,
    LifecycleEntry,
    LoadResponse,
    LoadSpec,
    ModelInfo,
    NodeStatus,
    RestartRequest,
    RestartResponse,
    UnloadRequest,
    UnloadResponse,
)
from cortex_common.schema.usage import UsageReport

_DISCOVERY = TypeAdapter(Discovery)
_HEALTH = TypeAdapter(Health)
_MODELS = TypeAdapter(tuple[ModelInfo, ...])
_LOAD = TypeAdapter(LoadResponse)
_UNLOAD = TypeAdapter(UnloadResponse)
_FORGET = TypeAdapter(ForgetResponse)
_ENDPOINT = TypeAdapter(EndpointResponse)
_ATTACHED = TypeAdapter(tuple[AttachedEngine, ...])
_RESTART = TypeAdapter(RestartResponse)
_DIRECTIVES = TypeAdapter(tuple[Directive, ...])
_NOTHING: TypeAdapter[None] = TypeAdapter(None)
_STATUS = TypeAdapter(NodeStatus)
_ENTRY = TypeAdapter(LifecycleEntry)


class NeuronClient(ControlClient):
    """The calls of a neuron's API. For the errors that every call raises see `ControlClient.call`."""

    async def discovery(self) -> Discovery:
        """Return the description of the host."""
        return await self.call(_DISCOVERY, "GET", "/discovery")

    async def health(self) -> Health:
        """Return the latest readings of the devices."""
        return await self.call(_HEALTH, "GET", "/health")

    async def models(self) -> tuple[ModelInfo, ...]:
        """Return all instances on the node."""
        return await self.call(_MODELS, "GET", "/models")

    async def load(self, spec: LoadSpec, known: Collection[str] | None = None) -> LoadResponse:
        """Request a new instance; returns when it is admitted, not when it is ready.

        Args:
            spec: the instance to start.
            known: the instances of the model that the caller already knows. If there is another one with the same spec,
                it is returned instead of starting a new one.

        Raises:
            DoesNotFit: the node's ledger refused; details hold needed_mb and the numbers of each device.
            Conflict: an instance with this id runs with a different spec.
        """
        body = spec.model_dump(mode="json", exclude_defaults=True)
        query = "" if known is None else f"?known={','.join(sorted(known))}"
        return await self.call(_LOAD, "POST", f"/models/load{query}", body=body, timeout=60.0)

    async def forget_size(self, model: str) -> bool:
        """Forget what loads of a model took; return whether anything was known."""
        body = ForgetRequest(model_id=model).model_dump(mode="json")
        answer = await self.call(_FORGET, "POST", "/models/forget-size", body=body)
        return answer.forgotten

    async def unload(self, request: UnloadRequest) -> UnloadResponse:
        """Stop instances; returns when their memory is measured as free.

        Raises:
            InstanceBusy: an instance has requests in flight after `drain_seconds`, and `force` is off.
        """
        body = request.model_dump(mode="json", exclude_defaults=True)
        return await self.call(
            _UNLOAD,
            "POST",
            "/models/unload",
            body=body,
            timeout=request.drain_seconds + 120.0,
        )

    async def endpoint(self, model_id: str) -> EndpointResponse:
        """Return where to send inference requests for a model."""
        return await self.call(_ENDPOINT, "GET", f"/models/{quote_path(model_id)}/endpoint")

    async def attached(self) -> tuple[AttachedEngine, ...]:
        """Return the node's attached engines."""
        return await self.call(_ATTACHED, "GET", "/harnesses")

    async def restart(
        self,
        harness: str,
        request: RestartRequest,
        *,
        timeout_s: float = 1920.0,
    ) -> RestartResponse:
        """Restart an attached engine; returns when it lists its models again. A repeated call joins a running restart.

        Raises:
            NotFound: the node has no such harness.
            NotSupported: the harness is not attached, or the node knows no systemd unit for it.
            Conflict: a load or unload is in progress in the engine.
            InstanceBusy: the engine is processing requests, and `force` is off.
            LoadFailed: systemd refused, or the engine did not come back.
        """
        return await self.call(
            _RESTART,
            "POST",
            f"/harnesses/{quote_path(harness)}/restart",
            body=request.model_dump(mode="json", exclude_defaults=True),
            timeout=timeout_s,
        )

    async def apply_directives(self, directives: Iterable[Directive]) -> tuple[Directive, ...]:
        """Have the node keep directives that are newer than its own; return all that it keeps then."""
        body = [d.model_dump(mode="json", exclude_defaults=True) for d in directives]
        return await self.call(_DIRECTIVES, "POST", "/directives", body=body)

    async def report_usage(self, report: UsageReport) -> None:
        """Report how the node's instances were used."""
        body = report.model_dump(mode="json", exclude_defaults=True)
        await self.call(_NOTHING, "POST", "/usage", body=body)

    async def watch_status(self, *, silence_s: float = 10.0) -> AsyncIterator[NodeStatus]:
        """Yield the node's status now and after each change; see `ControlClient.events`."""
        async for message in self.watch(silence_s=silence_s):
            if isinstance(message, NodeStatus):
                yield message

    async def watch(
        self, *, silence_s: float = 10.0, cursor: EventCursor | None = None
    ) -> AsyncIterator[NodeStatus | LifecycleEntry]:
        """Yield status changes and lifecycle entries; with a cursor, also the entries missed in between.

        Raises:
            UpstreamFailed: see `ControlClient.events`; or a status can't be read.
        """
        async for name, data in self.events("/events", silence_s=silence_s, cursor=cursor):
            if name == "status":
                yield self.parse(_STATUS, data, "an invalid status")
            elif name == "lifecycle":
                with suppress(UpstreamFailed):  # a line of a log is not worth a connection
                    yield self.parse(_ENTRY, data, "an invalid lifecycle entry")

    @asynccontextmanager
    async def log(
        self, model_id: str, instance: str, *, lines: int, follow: bool
    ) -> AsyncIterator[AsyncIterator[str]]:
        """Stream the output of an instance's engine in chunks; see `ControlClient.text`."""
        params = {"instance_id": instance, "lines": str(lines), "follow": str(follow).lower()}
        async with self.text(f"/models/{quote_path(model_id)}/logs", params) as chunks:
            yield chunks

    @asynccontextmanager
    async def daemon_log(self, *, lines: int, follow: bool) -> AsyncIterator[AsyncIterator[str]]:
        """Stream the neuron's own log in chunks of `log_buffer.LogLine`s; see `ControlClient.text`."""
        params = {"lines": str(lines), "follow": str(follow).lower()}
        async with self.text("/logs", params) as chunks:
            yield chunks
