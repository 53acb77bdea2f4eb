"""The operator API's route for what an engine writes: relayed from the node that runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from cortex_common.errors import NotFound, NotSupported
from cortex_common.fleet import FleetSnapshot, InstanceView
from cortex_common.neuron_client import NeuronClient

_MOST_LINES = 100_000


def logs_router(show: Callable[[], FleetSnapshot], nodes: Mapping[str, NeuronClient]) -> APIRouter:
    """The route /operator/v1/models/{name}/logs; to be added before those that take any path of a model.

    Args:
        show: the fleet now.
        nodes: client of each node's neuron.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get(
        "/models/{name:path}/logs",
        summary="What a model's engine wrote",
        response_class=StreamingResponse,
    )
    async def get_log(
        name: str,
        instance: str | None = None,
        lines: Annotated[int, Query(ge=0, le=_MOST_LINES)] = 200,
        follow: bool = False,
    ) -> StreamingResponse:
        """Its last lines, and with `follow` whatever comes. Of several instances the one that started last."""
        view = _instance(show(), name, instance)
        client = nodes.get(view.node)
        if client is None:
            raise NotSupported(f"{view.node} is an upstream: it shows no logs")
        pieces = _relay(client, view, lines, follow=follow)
        # Up to the head of the node's answer: what is wrong is an error, not the first line of a log.
        await anext(pieces)
        return StreamingResponse(
            pieces,
            media_type="text/plain; charset=utf-8",
            headers={
                "cache-control": "no-store",
                "x-accel-buffering": "no",
                "x-cortex-node": view.node,
                "x-cortex-instance": view.id,
            },
        )

    return router


async def _relay(
    client: NeuronClient, view: InstanceView, lines: int, *, follow: bool
) -> AsyncIterator[str]:
    """Nothing once the node has answered, then the log; closing it closes the node's side too."""
    async with client.log(view.model, view.id, lines=lines, follow=follow) as pieces:
        yield ""
        async for piece in pieces:
            yield piece


def _instance(snapshot: FleetSnapshot, name: str, wanted: str | None) -> InstanceView:
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
    if not found:
        which = f" {wanted!r}" if wanted else ""
        raise NotFound(
            f"model {name!r} has no instance{which}",
            hints=("`cortex ps -o wide` lists instances; a log goes with its instance",),
        )
    return max(found, key=lambda i: i.started_at)
