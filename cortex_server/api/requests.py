"""The operator API's routes for requests: which there are, and ending one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from fastapi import APIRouter

from cortex_common.errors import Cancelled, Conflict, NotFound
from cortex_common.logs import event
from cortex_common.requests import RequestList, RequestState, RequestView
from cortex_server.dataplane.exchange import Exchange
from cortex_server.dataplane.journal import RequestLine
from cortex_server.dataplane.plane import DataPlane

log = logging.getLogger("cortex.operator")


def requests_router(plane: Callable[[], DataPlane]) -> APIRouter:
    """The routes under /operator/v1/requests.

    Args:
        plane: whose requests these are; asked for at each call.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/requests", summary="Requests under way and the last that ended")
    async def list_requests() -> RequestList:
        """Who asked for what, how far it is, and how long each part took; no text of anybody's."""
        here = plane()
        now, unix = here.loop.time(), time.time()
        active = sorted(here.active, key=lambda e: e.trace.started)
        return RequestList(
            at=unix,
            active=tuple(_under_way(e, now, unix) for e in active),
            recent=tuple(_ended(line) for line in reversed(here.journal.recent)),
        )

    @router.post("/requests/{ident:path}/cancel", summary="End a request")
    async def cancel(ident: str) -> RequestView:
        """Tells its client that an operator ended it, and its engine to stop. A unique beginning of an id will do."""
        here = plane()
        found = _named(here.active, ident)
        event(log, "request_cancelled", request=found.trace.ident.decode(), model=found.model)
        found.cut_off(Cancelled("an operator ended this request"))
        return _ended(here.journal.recent[-1])

    return router


def _named(active: Iterable[Exchange], ident: str) -> Exchange:
    """The request of that id; the oldest where a client gave it to several.

    Raises:
        NotFound: none is under way.
        Conflict: the beginning of an id fits several.
    """
    fits = [e for e in active if e.trace.ident.decode().startswith(ident)]
    exact = [e for e in fits if e.trace.ident.decode() == ident]
    if not fits:
        raise NotFound(
            f"no request {ident!r} is under way", hints=("`cortex requests ls` lists them",)
        )
    if not exact and len(fits) > 1:
        raise Conflict(f"{len(fits)} requests begin with {ident!r}", hints=("say more of the id",))
    return min(exact or fits, key=lambda e: e.trace.started)


def _under_way(exchange: Exchange, now: float, unix: float) -> RequestView:
    trace, target = exchange.trace, exchange.target
    state, total = exchange.state, now - trace.started
    waits = state in {RequestState.QUEUE, RequestState.LOADING}
    tokens_in, tokens_out = exchange.tokens
    return RequestView(
        id=trace.ident.decode(),
        key=exchange.key.name if exchange.key else None,
        model=exchange.model or None,
        route=trace.route.path,
        node=target.node if target else None,
        instance=target.id if target else None,
        state=state,
        started=unix - total,
        cold_start=trace.cold or state is RequestState.LOADING,
        reason=trace.reason.decode() or None,
        queue_ms=round((total if waits else trace.queued_s) * 1000),
        ttft_ms=None if trace.first_s is None else trace.first_s * 1000,
        total_ms=total * 1000,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )


def _ended(line: RequestLine) -> RequestView:
    return RequestView(
        id=line.request,
        key=line.key,
        model=line.model,
        route=line.route,
        node=line.node,
        instance=line.instance,
        state=RequestState.DONE,
        started=line.ts.timestamp() - line.total_latency_ms / 1000,
        cold_start=line.cold_start,
        reason=line.reason,
        queue_ms=line.queue_ms,
        ttft_ms=line.time_to_first_token_ms,
        total_ms=line.total_latency_ms,
        tokens_in=line.prompt_tokens,
        tokens_out=line.completion_tokens,
        outcome=line.outcome,
    )
