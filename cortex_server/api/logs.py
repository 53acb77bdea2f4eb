"""The operator API's routes for logs: the gateway's own, and those of nodes and engines, relayed by their node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import CortexError, NodeNotFound, NotFound, NotSupported
from cortex_common.log_buffer import MEDIA_TYPE, MOST_LINES, KeptLog
from cortex_common.schema.fleet import FleetSnapshot, InstanceView

_MOST_ENGINE_LINES = 100_000
_FRESH = {"cache-control": "no-store", "x-accel-buffering": "no"}

Lines = Annotated[int, Query(ge=0, le=MOST_LINES)]


def logs_router(
    show: Callable[[], FleetSnapshot],
    nodes: Mapping[str, NeuronClient],
    own: KeptLog,
    over: Callable[[], bool],
    unknown: Callable[[str], CortexError],
) -> APIRouter:
    """The routes below /operator/v1; to be added before those that take any path of a model.

    Args:
        show: the fleet now.
        nodes: client of each node's neuron.
        own: what the gateway logged.
        over: whether the gateway lets its readers go.
        unknown: the error for a name that no model has.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/logs", summary="What the gateway logged", response_class=Response)
    async def get_own(lines: Lines = 200, follow: bool = False) -> Response:
        """Its last lines, one JSON object a line, and with `follow` whatever comes. Requests are told elsewhere."""
        if not follow:
            return Response(own.tail(lines), media_type=MEDIA_TYPE, headers=_FRESH)
        return StreamingResponse(own.follow(lines, over), media_type=MEDIA_TYPE, headers=_FRESH)

    @router.get("/nodes/{name}/logs", summary="What a node logged", response_class=Response)
    async def get_node(name: str, lines: Lines = 200, follow: bool = False) -> Response:
        """The same of the neuron on a node."""
        if show().node(name) is None:
            raise NodeNotFound.among(name, (n.name for n in show().nodes))
        reading = _client(nodes, name).own_log(lines=lines, follow=follow)
        return await _relayed(reading, MEDIA_TYPE, {"x-cortex-node": name})

    @router.get(
        "/models/{name:path}/logs",
        summary="What a model's engine wrote",
        response_class=StreamingResponse,
    )
    async def get_log(
        name: str,
        instance: str | None = None,
        lines: Annotated[int, Query(ge=0, le=_MOST_ENGINE_LINES)] = 200,
        follow: bool = False,
    ) -> StreamingResponse:
        """Its last lines, and with `follow` whatever comes. Of several instances the one that started last."""
        view = _instance(show(), name, instance, unknown)
        reading = _client(nodes, view.node).log(view.model, view.id, lines=lines, follow=follow)
        told = {"x-cortex-node": view.node, "x-cortex-instance": view.id}
        return await _relayed(reading, "text/plain; charset=utf-8", told)

    return router


def _client(nodes: Mapping[str, NeuronClient], name: str) -> NeuronClient:
    if (client := nodes.get(name)) is None:
        raise NotSupported(f"{name} is an upstream: it shows no logs")
    return client


async def _relayed(
    reading: AbstractAsyncContextManager[AsyncIterator[str]], media_type: str, told: dict[str, str]
) -> StreamingResponse:
    pieces = _pieces(reading)
    # Up to the head of the node's answer: what is wrong is an error, not the first line of a log.
    await anext(pieces)
    return StreamingResponse(pieces, media_type=media_type, headers=_FRESH | told)


async def _pieces(
    reading: AbstractAsyncContextManager[AsyncIterator[str]],
) -> AsyncIterator[str]:
    """Nothing once the node has answered, then the log; closing it closes the node's side too."""
    async with reading as pieces:
        yield ""
        async for piece in pieces:
            yield piece


def _instance(
    snapshot: FleetSnapshot,
    name: str,
    wanted: str | None,
    unknown: Callable[[str], CortexError],
) -> InstanceView:
    """The instance that is meant.

    Raises:
        NotFound: there is none.
    """
    model = snapshot.model(name)
    known = model.id if model is not None else name
    found = [
        i
        for i in snapshot.instances()
        if i.model == known and (wanted is None or i.id.startswith(wanted))
    ]
    if not found and model is None:
        raise unknown(name)
    if not found:
        which = f" {wanted!r}" if wanted else ""
        raise NotFound(
            f"model {name!r} has no instance{which}",
            hints=("`cortex ps -o wide` lists instances; a log goes with its instance",),
        )
    return max(found, key=lambda i: i.started_at)
