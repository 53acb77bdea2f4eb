"""The operator API: what the command and the terminal UI see and do. Thin; the verbs are in lifecycle/."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from cortex_common.fleet import SNAPSHOT
from cortex_common.operator import LoadModel, ModelAction, UnloadModel
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.verbs import Verbs

LEAST_PAUSE_S = 0.25
"""Changes within it are sent as one snapshot: four a second are as many as anybody can look at."""

KEEP_ALIVE_S = 5.0
"""Without a change, a comment goes out this often, so that a reader can tell quiet from dead."""


def operator_router(fleet: Fleet, verbs: Verbs) -> APIRouter:
    """The routes under /operator/v1.

    Args:
        fleet: what is shown.
        verbs: what can be done.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/fleet", summary="The fleet now")
    async def get_fleet() -> Response:
        """Every node, device, instance and model, as one snapshot."""
        return Response(SNAPSHOT.dump_json(fleet.snapshot), media_type="application/json")

    @router.get("/events", summary="The fleet now and after each change")
    async def get_events() -> StreamingResponse:
        """Server-sent events `fleet`, each a whole snapshot; the id is its version."""
        return StreamingResponse(
            fleet_events(fleet),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.post("/models/load", summary="Load a model")
    async def load(wish: LoadModel) -> ModelAction:
        """Answers once the load is under way, or ready with `wait`."""
        return await verbs.load(wish)

    @router.post("/models/unload", summary="Unload a model")
    async def unload(wish: UnloadModel) -> ModelAction:
        """Drains and ends all its instances; it is loaded again when somebody asks for it."""
        return await verbs.unload(wish)

    return router


async def fleet_events(fleet: Fleet) -> AsyncIterator[bytes]:
    """The event stream of one reader."""
    changed = asyncio.Event()
    fleet.on_change(changed.set)
    try:
        while True:
            changed.clear()
            snapshot = fleet.snapshot
            yield b"event: fleet\nid: %d\ndata: %b\n\n" % (
                snapshot.version,
                SNAPSHOT.dump_json(snapshot),
            )
            await asyncio.sleep(LEAST_PAUSE_S)
            while not await _within(changed, KEEP_ALIVE_S):
                yield b": nothing new\n\n"
    finally:
        fleet.remove_listener(changed.set)


async def _within(happened: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return False
    return True
