"""The operator API: what the command and the terminal UI see and do. Thin; the verbs are in lifecycle/."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
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
from cortex_server.audit_log import AuditLog
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.operations import Operations

LEAST_PAUSE_S = 0.25
"""Changes within it are sent as one snapshot: four a second are as many as anybody can look at."""

MOST_PAUSE_S = 10.0

KEEP_ALIVE_S = 5.0
"""Without a change, a comment goes out this often, so that a reader can tell quiet from dead."""


def operator_router(fleet: Fleet, verbs: Operations, audit_log: AuditLog) -> APIRouter:
    """The routes under /operator/v1.

    Args:
        fleet: what is shown.
        verbs: what can be done.
        audit_log: what was done.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/fleet", summary="The fleet now", responses={200: {"model": FleetSnapshot}})
    async def get_fleet() -> Response:
        """Every node, device, instance and model, as one snapshot."""
        return Response(SNAPSHOT.dump_json(verbs.shown()), media_type="application/json")

    @router.get("/events", summary="The fleet now and after each change")
    async def get_events(
        last_event_id: Annotated[str, Header()] = "",
        pause: Annotated[float, Query(ge=LEAST_PAUSE_S, le=MOST_PAUSE_S)] = LEAST_PAUSE_S,
    ) -> StreamingResponse:
        """Server-sent events: `fleet`, each a whole snapshot, and `lifecycle`, what was decided, by whom and why.

        With Last-Event-ID, the lifecycle entries that were missed come first. Changes within `pause` seconds
        come as one.
        """
        return StreamingResponse(
            fleet_events(fleet, verbs.shown, audit_log, last_event_id, pause),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.get("/trail", summary="What was decided lately, by whom and why")
    async def get_trail() -> tuple[AuditEntry, ...]:
        """The last thousand lifecycle entries, the oldest first."""
        return audit_log.since(0)

    @router.post("/models/load", summary="Load a model")
    async def load(load_request: LoadModel) -> ModelAction:
        """Answers once the load is under way, or ready with `wait`."""
        return await verbs.load(load_request)

    @router.post("/models/unload", summary="Unload a model")
    async def unload(load_request: UnloadModel) -> ModelAction:
        """Drains and ends all its instances; it is loaded again when somebody asks for it."""
        return await verbs.unload(load_request)

    @router.post("/models/evict", summary="End one instance")
    async def evict(load_request: EvictModel) -> ModelAction:
        """Drains and ends one instance; the gateway may load the model again."""
        return await verbs.evict(load_request)

    @router.post("/models/pin", summary="Protect a model from eviction")
    async def pin(load_request: PinModel) -> PinView:
        """For a time, or until it is unpinned; outlasts the gateway."""
        return await verbs.pin(load_request)

    @router.post("/models/unpin", summary="End a model's protection")
    async def unpin(load_request: UnpinModel) -> tuple[PinView, ...]:
        """Answers the pins that are left; those of its profile are not ended."""
        return await verbs.unpin(load_request)

    @router.get("/models/{name:path}", summary="A model's estimate and measurements")
    async def detail(name: str) -> ModelDetail:
        """What its profile guesses beside what its loads took."""
        return verbs.detail(name)

    _add_plan_routes(router, verbs)
    _add_node_routes(router, verbs)
    return router


def _add_plan_routes(router: APIRouter, verbs: Operations) -> None:
    @router.post("/plan/load", summary="What would be done to load a model")
    async def plan_load(load_request: PlanLoad) -> PlanView:
        """The plan with every device's ledger; changes nothing."""
        return verbs.plan_load(load_request)

    @router.post("/plan/evict", summary="Which instance an eviction would end")
    async def plan_evict(load_request: EvictModel) -> PlannedEviction:
        """What it frees, and whom it disturbs; changes nothing."""
        return verbs.plan_evict(load_request)

    @router.post("/plan/drain", summary="What emptying a node would do")
    async def plan_drain(load_request: NodeRequest) -> DrainPlan:
        """Where each of its models would go; changes nothing."""
        return verbs.plan_drain(load_request)

    @router.get("/decisions/{request:path}", summary="What a request waited for")
    async def decisions(request: str) -> tuple[DecisionView, ...]:
        """By its x-request-id; empty when it waited for no load, or that was long ago."""
        return verbs.decisions(request)

    @router.post("/plan/defrag", summary="Which moves would make a large free block")
    async def plan_defrag(load_request: DefragRequest) -> DefragView:
        """The moves with the room before and after; changes nothing."""
        return verbs.mover.plan(load_request)

    @router.post("/defrag", summary="Make the moves of a plan")
    async def defrag(load_request: ApplyDefrag) -> DefragView:
        """Refused when the fleet has changed since the plan was shown."""
        return await verbs.mover.apply(load_request)


def _add_node_routes(router: APIRouter, verbs: Operations) -> None:
    @router.post("/nodes/cordon", summary="Place nothing new on a node")
    async def cordon(load_request: NodeRequest) -> NodeAction:
        """What it has goes on serving."""
        return await verbs.cordon(load_request.node, cordoned=True)

    @router.post("/nodes/uncordon", summary="Use a node again")
    async def uncordon(load_request: NodeRequest) -> NodeAction:
        """New instances may be placed on it."""
        return await verbs.cordon(load_request.node, cordoned=False)

    @router.post("/nodes/drain", summary="Empty a node")
    async def drain(load_request: DrainNode) -> NodeAction:
        """Cordons it, loads its models elsewhere where there is room, and unloads them there."""
        return await verbs.drain(load_request)


async def fleet_events(
    fleet: Fleet,
    show: Callable[[], FleetSnapshot],
    audit_log: AuditLog,
    last_event_id: str = "",
    pause_s: float = LEAST_PAUSE_S,
) -> AsyncIterator[bytes]:
    """The event stream of one reader.

    Args:
        fleet: whose changes are told.
        show: gives the snapshot to send.
        audit_log: whose entries are told.
        last_event_id: of the last event that the reader had, "VERSION.ENTRY"; a new reader begins with what comes.
        pause_s: changes within so many seconds are one event.
    """
    _, _, read = last_event_id.partition(".")
    noted = int(read) if read.isdigit() else audit_log.last_id
    changed = asyncio.Event()
    fleet.on_change(changed.set)
    audit_log.on_entry(changed.set)
    try:
        while not fleet.closed:
            changed.clear()
            snapshot = show()
            for entry in audit_log.since(noted):
                noted = entry.id
                yield _event("lifecycle", snapshot.version, noted, entry.model_dump_json().encode())
            yield _event("fleet", snapshot.version, noted, SNAPSHOT.dump_json(snapshot))
            await asyncio.sleep(pause_s)
            while not await _within(changed, KEEP_ALIVE_S):
                yield b": nothing new\n\n"
    finally:
        fleet.remove_listener(changed.set)
        audit_log.remove_listener(changed.set)


def _event(name: str, version: int, noted: int, data: bytes) -> bytes:
    return b"event: %b\nid: %d.%d\ndata: %b\n\n" % (name.encode(), version, noted, data)


async def _within(happened: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return False
    return True
