"""Operator routes for logs: the gateway's own, and those of nodes and engines, which their neuron serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import CortexError, NodeNotFound, NotFound, NotSupported
from cortex_common.log_buffer import MAX_TAIL_LINES, MEDIA_TYPE, LogBuffer
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.operation import OPERATOR_PREFIX

_MAX_ENGINE_LINES = 100_000
_UNCACHED = {"cache-control": "no-store", "x-accel-buffering": "no"}

Lines = Annotated[int, Query(ge=0, le=MAX_TAIL_LINES)]


def logs_router(
    snapshot: Callable[[], FleetSnapshot],
    nodes: Mapping[str, NeuronClient],
    log_buffer: LogBuffer,
    is_closed: Callable[[], bool],
    model_not_found: Callable[[str], CortexError],
) -> APIRouter:
    """Return the log routes. Include them before routes that match any path below /models.

    Args:
        snapshot: returns the current state of the fleet.
        nodes: client of each node's neuron.
        log_buffer: the gateway's own log.
        is_closed: returns whether streams have to end because the gateway is stopping.
        model_not_found: returns the error for a name that no model has.
    """
    router = APIRouter(prefix=OPERATOR_PREFIX, tags=["operator"])

    @router.get("/logs", summary="Log of the gateway", response_class=Response)
    async def get_gateway_log(lines: Lines = 200, follow: bool = False) -> Response:
        """Return the last lines, one JSON object per line, and with `follow` new lines as they are logged.

        Requests are not included; `/operator/v1/requests` lists them.
        """
        if not follow:
            return Response(log_buffer.tail(lines), media_type=MEDIA_TYPE, headers=_UNCACHED)
        return StreamingResponse(
            log_buffer.follow(lines, is_closed), media_type=MEDIA_TYPE, headers=_UNCACHED
        )

    @router.get("/nodes/{name}/logs", summary="Log of a node", response_class=Response)
    async def get_node_log(name: str, lines: Lines = 200, follow: bool = False) -> Response:
        """Return the log of the neuron on a node, in the same format."""
        if snapshot().node(name) is None:
            raise NodeNotFound.for_name(name, (node.name for node in snapshot().nodes))
        log = _client(nodes, name).daemon_log(lines=lines, follow=follow)
        return await _relay(log, MEDIA_TYPE, {"x-cortex-node": name})

    @router.get(
        "/models/{name:path}/logs",
        summary="Output of a model's engine",
        response_class=StreamingResponse,
    )
    async def get_engine_log(
        name: str,
        instance: str | None = None,
        lines: Annotated[int, Query(ge=0, le=_MAX_ENGINE_LINES)] = 200,
        follow: bool = False,
    ) -> StreamingResponse:
        """Return the last lines, and with `follow` new lines as they are written.

        If the model has several instances, the one that started last is chosen.
        """
        view = _find_instance(snapshot(), name, instance, model_not_found)
        log = _client(nodes, view.node).log(view.model, view.id, lines=lines, follow=follow)
        headers = {"x-cortex-node": view.node, "x-cortex-instance": view.id}
        return await _relay(log, "text/plain; charset=utf-8", headers)

    return router


def _client(nodes: Mapping[str, NeuronClient], name: str) -> NeuronClient:
    if (client := nodes.get(name)) is None:
        raise NotSupported(f"{name} is an external upstream, whose logs are not available")
    return client


async def _relay(
    log: AbstractAsyncContextManager[AsyncIterator[str]], media_type: str, headers: dict[str, str]
) -> StreamingResponse:
    chunks = _chunks(log)
    # Wait for the head of the node's response, so that an error becomes an error response, not the start of a log.
    await anext(chunks)
    return StreamingResponse(chunks, media_type=media_type, headers=_UNCACHED | headers)


async def _chunks(log: AbstractAsyncContextManager[AsyncIterator[str]]) -> AsyncIterator[str]:
    """Yield an empty string once the node has responded, then the log. Closing this closes the node's response too."""
    async with log as chunks:
        yield ""
        async for chunk in chunks:
            yield chunk


def _find_instance(
    snapshot: FleetSnapshot,
    name: str,
    id_prefix: str | None,
    model_not_found: Callable[[str], CortexError],
) -> InstanceView:
    """Return the newest instance of a model whose id begins with `id_prefix`.

    Raises:
        NotFound: there is none.
    """
    model = snapshot.model(name)
    model_id = model.id if model is not None else name
    matches = [
        instance
        for instance in snapshot.instances()
        if instance.model == model_id and (id_prefix is None or instance.id.startswith(id_prefix))
    ]
    if not matches and model is None:
        raise model_not_found(name)
    if not matches:
        which = f" {id_prefix!r}" if id_prefix else ""
        raise NotFound(
            f"model {name!r} has no instance{which}",
            hints=("`cortex ps -o wide` lists instances; logs are deleted with their instance",),
        )
    return max(matches, key=lambda instance: instance.started_at)
