"""The operator API used by the command and the terminal UI: the fleet, its events, and the operations on it.

The operations are declared in `cortex_common.schema.operations` and implemented in `cortex_server.lifecycle`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot
from cortex_common.schema.model_detail import ModelDetail
from cortex_common.schema.operation import OPERATOR_PREFIX, Operation, Target
from cortex_common.schema.operations import OPERATIONS
from cortex_common.schema.plans import DecisionView
from cortex_server.audit_log import AuditLog
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.operations import Operations

_TARGETS = (Target.MODEL, Target.NODE, Target.FLEET)
"""Targets of the operations that `Operations` implements; the other routers add their own."""

LEAST_PAUSE_S = 0.25
"""Changes within this many seconds are merged into one snapshot: four per second are as many as anyone can read."""

MOST_PAUSE_S = 10.0

KEEP_ALIVE_S = 5.0
"""Interval of comments while nothing changes, so that a reader can tell an idle stream from a dead one."""


def operator_router(fleet: Fleet, operations: Operations, audit_log: AuditLog) -> APIRouter:
    """Return the routes for the fleet and the operations on it.

    Args:
        fleet: the live state.
        operations: implementation of the operations.
        audit_log: the recent lifecycle entries.
    """
    router = APIRouter(prefix=OPERATOR_PREFIX, tags=["operator"])

    @router.get("/fleet", summary="The fleet now", responses={200: {"model": FleetSnapshot}})
    async def get_fleet() -> Response:
        """Every node, device, instance and model, as one snapshot."""
        return Response(SNAPSHOT.dump_json(operations.shown()), media_type="application/json")

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
            watch_fleet(fleet, operations.shown, audit_log, last_event_id, pause),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.get("/trail", summary="What was decided lately, by whom and why")
    async def get_trail() -> tuple[AuditEntry, ...]:
        """The last thousand lifecycle entries, the oldest first."""
        return audit_log.since(0)

    for operation in OPERATIONS:
        if operation.target in _TARGETS:
            add_operation(router, operation, getattr(operations, operation.name))

    @router.get("/models/{name:path}", summary="A model's estimate and measurements")
    async def detail(name: str) -> ModelDetail:
        """Estimate of its model config next to what its loads measured."""
        return operations.detail(name)

    @router.get("/decisions/{request:path}", summary="What a request waited for")
    async def decisions(request: str) -> tuple[DecisionView, ...]:
        """Decisions by x-request-id; empty when the request waited for no load, or is no longer remembered."""
        return operations.decisions(request)

    return router


def add_operation(
    router: APIRouter, operation: Operation[Any, Any], handler: Callable[[Any], Awaitable[Any]]
) -> None:
    """Add the route of an operation.

    Args:
        router: for `OPERATOR_PREFIX`.
        operation: entry of the table.
        handler: implementation; its annotations give the schemas of body and response.
    """
    router.add_api_route(
        operation.path,
        handler,
        methods=["POST"],
        summary=operation.summary,
        description=operation.description,
    )


async def watch_fleet(
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
