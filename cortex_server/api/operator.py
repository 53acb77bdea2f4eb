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
from cortex_common.schema.operation import OPERATOR_PREFIX, Operation, OperationTarget
from cortex_common.schema.operations import OPERATIONS
from cortex_common.schema.plans import DecisionView
from cortex_server.audit_log import AuditLog
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.operations import Operations

_TARGETS = (OperationTarget.MODEL, OperationTarget.NODE, OperationTarget.FLEET)
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
        return Response(SNAPSHOT.dump_json(operations.snapshot()), media_type="application/json")

    @router.get("/events", summary="The fleet now and after each change")
    async def get_events(
        last_event_id: Annotated[str, Header()] = "",
        pause: Annotated[float, Query(ge=LEAST_PAUSE_S, le=MOST_PAUSE_S)] = LEAST_PAUSE_S,
    ) -> StreamingResponse:
        """Server-sent events: `fleet` with a whole snapshot, and `lifecycle` with an audit entry.

        With Last-Event-ID, missed audit entries come first. Changes within `pause` seconds are merged into one event.
        """
        return StreamingResponse(
            stream_events(fleet, operations.snapshot, audit_log, last_event_id, pause),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.get("/audit", summary="Recent audit entries")
    async def get_audit() -> tuple[AuditEntry, ...]:
        """Return the last thousand audit entries, oldest first."""
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


async def stream_events(
    fleet: Fleet,
    show: Callable[[], FleetSnapshot],
    audit_log: AuditLog,
    last_event_id: str = "",
    pause_s: float = LEAST_PAUSE_S,
) -> AsyncIterator[bytes]:
    """Yield the event stream of one reader as server-sent events.

    Args:
        fleet: the live state.
        show: returns the snapshot to send.
        audit_log: the audit entries.
        last_event_id: id of the last event that the reader received, "VERSION.ENTRY"; new readers get new entries only.
        pause_s: seconds within which changes are merged into one event.
    """
    _, _, entry_id = last_event_id.partition(".")
    last_id = int(entry_id) if entry_id.isdigit() else audit_log.last_id
    changed = asyncio.Event()
    fleet.on_change(changed.set)
    audit_log.on_entry(changed.set)
    try:
        while not fleet.closed:
            changed.clear()
            snapshot = show()
            for entry in audit_log.since(last_id):
                last_id = entry.id
                yield _event(
                    "lifecycle", snapshot.version, last_id, entry.model_dump_json().encode()
                )
            yield _event("fleet", snapshot.version, last_id, SNAPSHOT.dump_json(snapshot))
            await asyncio.sleep(pause_s)
            while not await _wait(changed, KEEP_ALIVE_S):
                yield b": keep-alive\n\n"
    finally:
        fleet.remove_listener(changed.set)
        audit_log.remove_listener(changed.set)


def _event(name: str, version: int, entry_id: int, data: bytes) -> bytes:
    return b"event: %b\nid: %d.%d\ndata: %b\n\n" % (name.encode(), version, entry_id, data)


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Return whether an event happened within this time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
