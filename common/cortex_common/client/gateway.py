"""Typed async client of a gateway's operator API (/operator/v1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from typing import Generic, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter

from cortex_common.client.control import ControlClient, EventCursor, quote_path
from cortex_common.client.operator_transport import operator_transport
from cortex_common.config.provenance import ConfigView
from cortex_common.log_buffer import LogLine, parse_log_lines
from cortex_common.schema import operations
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.schema.keys import CreatedKey, CreateKeyRequest, KeyView, UsageRow
from cortex_common.schema.model_detail import ModelDetail
from cortex_common.schema.operation import OPERATOR_PREFIX, Operation
from cortex_common.schema.plans import DecisionView
from cortex_common.schema.requests import RequestList

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")

_KEY = TypeAdapter(KeyView)
_KEYS = TypeAdapter(tuple[KeyView, ...])
_CREATED = TypeAdapter(CreatedKey)
_USAGE = TypeAdapter(tuple[UsageRow, ...])
_DECISIONS = TypeAdapter(tuple[DecisionView, ...])
_DETAIL = TypeAdapter(ModelDetail)
_CONFIG = TypeAdapter(ConfigView)
_ENTRY = TypeAdapter(AuditEntry)
_AUDIT = TypeAdapter(tuple[AuditEntry, ...])
_REQUESTS = TypeAdapter(RequestList)


class _Method(Generic[Request, Response]):
    """An operation as a method of `OperatorClient`, such as `client.load(LoadModel(...))`."""

    def __init__(self, operation: Operation[Request, Response]) -> None:
        self._operation = operation

    def __get__(
        self, client: OperatorClient, owner: type[OperatorClient]
    ) -> Callable[[Request], Awaitable[Response]]:
        return partial(client.run, self._operation)


class OperatorClient(ControlClient):
    """Client of the operator API. For the errors that methods raise, see `ControlClient.call`.

    Without a token, it uses the operator socket of a gateway on this host.
    """

    def __init__(
        self,
        base_url: str,
        *,
        who: str,
        token: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if token is None and transport is None:
            transport = operator_transport(base_url)
        super().__init__(base_url, who=who, token=token, transport=transport)

    load = _Method(operations.LOAD)
    unload = _Method(operations.UNLOAD)
    evict = _Method(operations.EVICT)
    pin = _Method(operations.PIN)
    unpin = _Method(operations.UNPIN)
    forget_size = _Method(operations.FORGET_SIZE)
    cordon = _Method(operations.CORDON)
    uncordon = _Method(operations.UNCORDON)
    drain = _Method(operations.DRAIN)
    defrag = _Method(operations.DEFRAG)
    plan_load = _Method(operations.PLAN_LOAD)
    plan_evict = _Method(operations.PLAN_EVICT)
    plan_drain = _Method(operations.PLAN_DRAIN)
    plan_defrag = _Method(operations.PLAN_DEFRAG)
    cancel = _Method(operations.CANCEL)

    async def run(self, operation: Operation[Request, Response], request: Request) -> Response:
        """Call an operation.

        Args:
            operation: entry of `cortex_common.schema.operations.OPERATIONS`.
            request: body of the call.
        """
        return await self.call(
            operation.response,
            "POST",
            OPERATOR_PREFIX + operation.path,
            body=request.model_dump(mode="json", exclude_none=True),
            timeout=operation.timeout_s(request),
        )

    async def reload(self) -> operations.ReloadResult:
        """Make the gateway read its configuration again.

        Raises:
            ConfigError: a file is invalid; the gateway keeps its current configuration.
        """
        return await self.run(operations.RELOAD, operations.ReloadConfigRequest())

    async def fleet(self) -> FleetSnapshot:
        """Return the current state of the fleet."""
        return await self.call(SNAPSHOT, "GET", "/operator/v1/fleet")

    async def watch_fleet(self, *, silence_s: float = 15.0) -> AsyncIterator[FleetSnapshot]:
        """Yield the state of the fleet now and after each change; see `ControlClient.events`."""
        async for name, data in self.events("/operator/v1/events", silence_s=silence_s):
            if name == "fleet":
                yield self.parse(SNAPSHOT, data, "an invalid snapshot")

    async def watch(
        self, cursor: EventCursor, *, pause_s: float = 0.25, silence_s: float = 15.0
    ) -> AsyncIterator[FleetSnapshot | AuditEntry]:
        """Yield the events of `watch_fleet` and new audit entries, with those missed since a used cursor.

        Args:
            cursor: position in the event stream; kept up to date.
            pause_s: seconds within which changes are merged into one event; 0.25 to 10.
            silence_s: see `ControlClient.events`; added to the pause.
        """
        path = f"/operator/v1/events?pause={pause_s:g}"
        silence_s += pause_s
        async for name, data in self.events(path, silence_s=silence_s, cursor=cursor):
            if name == "fleet":
                yield self.parse(SNAPSHOT, data, "an invalid snapshot")
            elif name == "lifecycle":
                yield self.parse(_ENTRY, data, "an invalid audit entry")

    async def config(self) -> ConfigView:
        """Return the gateway's effective configuration, secrets redacted."""
        return await self.call(_CONFIG, "GET", "/operator/v1/config")

    @asynccontextmanager
    async def log(
        self, model: str, *, lines: int = 200, follow: bool = False, instance: str | None = None
    ) -> AsyncIterator[AsyncIterator[str]]:
        """Stream the log of a model's engine in chunks of text; see `ControlClient.text`."""
        params = {"lines": str(lines), "follow": str(follow).lower()}
        params |= {"instance": instance} if instance else {}
        async with self.text(f"/operator/v1/models/{quote_path(model)}/logs", params) as pieces:
            yield pieces

    @asynccontextmanager
    async def daemon_log(
        self, node: str | None = None, *, lines: int = 200, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        """Stream the log of the gateway, or of the neuron of a node; see `ControlClient.text`.

        Raises:
            UpstreamFailed: the response is not a log.
        """
        path = (
            "/operator/v1/logs" if node is None else f"/operator/v1/nodes/{quote_path(node)}/logs"
        )
        params = {"lines": str(lines), "follow": str(follow).lower()}
        async with self.text(path, params) as pieces:
            yield parse_log_lines(pieces)

    async def audit(self) -> tuple[AuditEntry, ...]:
        """Return the recent audit entries, oldest first."""
        return await self.call(_AUDIT, "GET", "/operator/v1/audit")

    async def model(self, name: str) -> ModelDetail:
        """Return a model's estimate and measurements."""
        return await self.call(_DETAIL, "GET", f"/operator/v1/models/{quote_path(name)}")

    async def requests(self, limit: int | None = None) -> RequestList:
        """Return the requests in flight and the most recent finished ones, at most `limit` of these."""
        params = {} if limit is None else {"limit": str(limit)}
        return await self.call(_REQUESTS, "GET", "/operator/v1/requests", params=params)

    async def decisions(self, request: str) -> tuple[DecisionView, ...]:
        """Return what a request waited for; empty if it did not wait, or if the gateway no longer remembers it."""
        return await self.call(_DECISIONS, "GET", f"/operator/v1/decisions/{quote_path(request)}")

    async def keys(self) -> tuple[KeyView, ...]:
        """Return all API keys, without their secrets."""
        return await self.call(_KEYS, "GET", "/operator/v1/keys")

    async def create_key(self, request: CreateKeyRequest) -> CreatedKey:
        """Create a key; its secret is returned only here."""
        body = request.model_dump(mode="json", exclude_defaults=True)
        return await self.call(_CREATED, "POST", "/operator/v1/keys", body=body)

    async def revoke_key(self, name: str) -> KeyView:
        """Revoke a key."""
        return await self.call(_KEY, "DELETE", f"/operator/v1/keys/{quote_path(name)}")

    async def usage(
        self, since: date | None = None, until: date | None = None
    ) -> tuple[UsageRow, ...]:
        """Return the usage of keys by day and model; by default of the last 30 days."""
        days = {"since": since, "until": until}
        params = {name: day.isoformat() for name, day in days.items() if day is not None}
        return await self.call(_USAGE, "GET", "/operator/v1/usage", params=params)
