"""Typed async client of a gateway's operator API (/operator/v1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date

from pydantic import TypeAdapter

from cortex_common.client.control import ControlClient, EventCursor, quote_path
from cortex_common.config.provenance import ConfigView
from cortex_common.log_buffer import LogLine, parse_log_lines
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.schema.keys import CreatedKey, CreateKey, KeyView, UsageRow
from cortex_common.schema.operations import (
    DrainNode,
    EvictModel,
    LoadModel,
    ModelAction,
    ModelDetail,
    NodeAction,
    NodeRequest,
    PinModel,
    PinView,
    Reloaded,
    UnloadModel,
    UnpinModel,
)
from cortex_common.schema.plans import (
    ApplyDefrag,
    DecisionView,
    DefragRequest,
    DefragView,
    DrainPlan,
    PlanLoad,
    PlannedEviction,
    PlanView,
)
from cortex_common.schema.requests import RequestList, RequestView

_ACTION = TypeAdapter(ModelAction)
_RELOADED = TypeAdapter(Reloaded)
_KEY = TypeAdapter(KeyView)
_KEYS = TypeAdapter(tuple[KeyView, ...])
_CREATED = TypeAdapter(CreatedKey)
_USAGE = TypeAdapter(tuple[UsageRow, ...])
_NODE = TypeAdapter(NodeAction)
_PIN = TypeAdapter(PinView)
_PINS = TypeAdapter(tuple[PinView, ...])
_PLAN = TypeAdapter(PlanView)
_EVICTION = TypeAdapter(PlannedEviction)
_DRAIN = TypeAdapter(DrainPlan)
_DECISIONS = TypeAdapter(tuple[DecisionView, ...])
_DEFRAG = TypeAdapter(DefragView)
_DETAIL = TypeAdapter(ModelDetail)
_CONFIG = TypeAdapter(ConfigView)
_ENTRY = TypeAdapter(AuditEntry)
_TRAIL = TypeAdapter(tuple[AuditEntry, ...])
_REQUESTS = TypeAdapter(RequestList)
_REQUEST = TypeAdapter(RequestView)


class OperatorClient(ControlClient):
    """Everything that the command and the terminal UI do. Errors: see `ControlClient.call`."""

    async def fleet(self) -> FleetSnapshot:
        """The fleet now."""
        return await self.call(SNAPSHOT, "GET", "/operator/v1/fleet")

    async def watch_fleet(self, *, silence_s: float = 15.0) -> AsyncIterator[FleetSnapshot]:
        """The fleet now and after each change; see `ControlClient.events`."""
        async for name, data in self.events("/operator/v1/events", silence_s=silence_s):
            if name == "fleet":
                yield SNAPSHOT.validate_json(data)

    async def watch(
        self, cursor: EventCursor, *, pause_s: float = 0.25, silence_s: float = 15.0
    ) -> AsyncIterator[FleetSnapshot | AuditEntry]:
        """`watch_fleet` and what is decided meanwhile; with a used cursor also what was missed.

        Args:
            cursor: what was read.
            pause_s: changes within so many seconds come as one; 0.25 to 10.
            silence_s: see `ControlClient.events`; on top of the pause.
        """
        path = f"/operator/v1/events?pause={pause_s:g}"
        silence_s += pause_s
        async for name, data in self.events(path, silence_s=silence_s, cursor=cursor):
            if name == "fleet":
                yield SNAPSHOT.validate_json(data)
            elif name == "lifecycle":
                yield _ENTRY.validate_json(data)

    async def config(self) -> ConfigView:
        """What the gateway runs by, secrets hidden."""
        return await self.call(_CONFIG, "GET", "/operator/v1/config")

    @asynccontextmanager
    async def log(
        self, model: str, *, lines: int = 200, follow: bool = False, instance: str | None = None
    ) -> AsyncIterator[AsyncIterator[str]]:
        """What a model's engine wrote, piece by piece; see `ControlClient.text`."""
        params = {"lines": str(lines), "follow": str(follow).lower()}
        params |= {"instance": instance} if instance else {}
        async with self.text(f"/operator/v1/models/{quote_path(model)}/logs", params) as pieces:
            yield pieces

    @asynccontextmanager
    async def daemon_log(
        self, node: str | None = None, *, lines: int = 200, follow: bool = False
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        """What the gateway, or the neuron of a node, logged; see `ControlClient.text`.

        Raises:
            UpstreamFailed: it answered with something else.
        """
        path = (
            "/operator/v1/logs" if node is None else f"/operator/v1/nodes/{quote_path(node)}/logs"
        )
        params = {"lines": str(lines), "follow": str(follow).lower()}
        async with self.text(path, params) as pieces:
            yield parse_log_lines(pieces)

    async def trail(self) -> tuple[AuditEntry, ...]:
        """What was decided lately, the oldest first."""
        return await self.call(_TRAIL, "GET", "/operator/v1/trail")

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

    async def evict(self, request: EvictModel) -> ModelAction:
        """Drain and end one instance of a model."""
        body = request.model_dump(mode="json", exclude_none=True)
        timeout = request.drain_timeout_s + 130.0
        return await self.call(
            _ACTION, "POST", "/operator/v1/models/evict", body=body, timeout=timeout
        )

    async def pin(self, request: PinModel) -> PinView:
        """Protect a model from eviction."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(_PIN, "POST", "/operator/v1/models/pin", body=body)

    async def unpin(self, request: UnpinModel) -> tuple[PinView, ...]:
        """End pins; answers those that the model still has."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(_PINS, "POST", "/operator/v1/models/unpin", body=body)

    async def model(self, name: str) -> ModelDetail:
        """A model's estimate beside what was measured."""
        return await self.call(_DETAIL, "GET", f"/operator/v1/models/{quote_path(name)}")

    async def requests(self, last: int | None = None) -> RequestList:
        """The requests under way, and those that ended last: at most so many, or all that are kept."""
        params = {} if last is None else {"last": str(last)}
        return await self.call(_REQUESTS, "GET", "/operator/v1/requests", params=params)

    async def cancel(self, request: str) -> RequestView:
        """End a request; a unique beginning of its id will do.

        Raises:
            NotFound: none is under way.
            Conflict: several begin so.
        """
        path = f"/operator/v1/requests/{quote_path(request)}/cancel"
        return await self.call(_REQUEST, "POST", path)

    async def cordon(self, node: str) -> NodeAction:
        """Place no new instances on a node."""
        body = NodeRequest(node=node).model_dump()
        return await self.call(_NODE, "POST", "/operator/v1/nodes/cordon", body=body)

    async def uncordon(self, node: str) -> NodeAction:
        """Place instances on it again."""
        body = NodeRequest(node=node).model_dump()
        return await self.call(_NODE, "POST", "/operator/v1/nodes/uncordon", body=body)

    async def drain(self, request: DrainNode) -> NodeAction:
        """Cordon a node and move or unload what it has."""
        body = request.model_dump(mode="json")
        timeout = request.timeout_s + 1900.0
        return await self.call(
            _NODE, "POST", "/operator/v1/nodes/drain", body=body, timeout=timeout
        )

    async def plan_defrag(self, request: DefragRequest) -> DefragView:
        """Which moves would make a large free block. Changes nothing."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(_DEFRAG, "POST", "/operator/v1/plan/defrag", body=body)

    async def defrag(self, request: ApplyDefrag) -> DefragView:
        """Carry out exactly the moves that a plan showed.

        Raises:
            Conflict: the fleet has changed since.
        """
        body = request.model_dump(mode="json", exclude_none=True)
        moves = request.request.max_moves
        timeout = request.request.max_seconds * 3 + moves * request.drain_timeout_s + 300.0
        return await self.call(_DEFRAG, "POST", "/operator/v1/defrag", body=body, timeout=timeout)

    async def plan_load(self, request: PlanLoad) -> PlanView:
        """What would be done to load a model, with every device's ledger. Changes nothing."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(_PLAN, "POST", "/operator/v1/plan/load", body=body)

    async def plan_evict(self, request: EvictModel) -> PlannedEviction:
        """Which instance an eviction would end. Changes nothing."""
        body = request.model_dump(mode="json", exclude_none=True)
        return await self.call(_EVICTION, "POST", "/operator/v1/plan/evict", body=body)

    async def plan_drain(self, node: str) -> DrainPlan:
        """What emptying a node would do. Changes nothing."""
        body = NodeRequest(node=node).model_dump()
        return await self.call(_DRAIN, "POST", "/operator/v1/plan/drain", body=body)

    async def decisions(self, request: str) -> tuple[DecisionView, ...]:
        """What a request waited for; nothing when it had not to, or that was long ago."""
        return await self.call(_DECISIONS, "GET", f"/operator/v1/decisions/{quote_path(request)}")

    async def reload(self) -> Reloaded:
        """Have the gateway read its configuration again.

        Raises:
            ConfigError: a file is wrong; the gateway runs on as before.
        """
        return await self.call(_RELOADED, "POST", "/operator/v1/config/reload", timeout=30.0)

    async def keys(self) -> tuple[KeyView, ...]:
        """All API keys, without their secrets."""
        return await self.call(_KEYS, "GET", "/operator/v1/keys")

    async def create_key(self, request: CreateKey) -> CreatedKey:
        """Make a key; the answer is the only time that its secret is told."""
        body = request.model_dump(mode="json", exclude_defaults=True)
        return await self.call(_CREATED, "POST", "/operator/v1/keys", body=body)

    async def revoke_key(self, name: str) -> KeyView:
        """End a key."""
        return await self.call(_KEY, "DELETE", f"/operator/v1/keys/{quote_path(name)}")

    async def usage(
        self, since: date | None = None, until: date | None = None
    ) -> tuple[UsageRow, ...]:
        """What keys used by day and model; the last 30 days unless told otherwise."""
        days = {"since": since, "until": until}
        params = {name: day.isoformat() for name, day in days.items() if day is not None}
        return await self.call(_USAGE, "GET", "/operator/v1/usage", params=params)
