"""Which requests there are: for operators who look on and cancel, and for the end, which waits for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from cortex_common.errors import Cancelled, Conflict, NotFound
from cortex_common.log import event
from cortex_common.schema.requests import RequestList, RequestState, RequestView
from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.request import ProxyRequest

log = logging.getLogger("cortex.operator")

_POLL_S = 0.02


class InflightRequests:
    """The requests in flight on this gateway.

    Args:
        context: Shared state of the proxy.
    """

    def __init__(self, context: ProxyContext) -> None:
        self._context = context

    @property
    def count(self) -> int:
        """Number of requests in flight."""
        return len(self._context.active)

    def list(self, last: int = 0) -> RequestList:
        """Return the requests in flight, oldest first, and the `last` finished ones."""
        now, unix = self._context.loop.time(), time.time()
        active = sorted(self._context.active, key=lambda e: e.record.started)
        return RequestList(
            at=unix,
            active=tuple(_active_view(e, now, unix) for e in active),
            recent=tuple(map(_finished_view, self._context.access_log.last(last))),
        )

    def cancel(self, ident: str) -> RequestView:
        """Cancel a request, given its id or a unique prefix of it.

        Raises:
            NotFound: No request in flight has that id.
            Conflict: The prefix matches several requests.
        """
        found_id = _match(self.list().active, ident).id.encode()
        found = min(
            (e for e in self._context.active if e.record.ident == found_id),
            key=lambda e: e.record.started,
        )
        event(log, "request_cancelled", request=found_id.decode(), model=found.model)
        found.cut_off(Cancelled("an operator cancelled this request"))
        return _finished_view(self._context.access_log.entries[-1].line())

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self._context.active:  # noqa: ASYNC110 - an event for it would cost every request
            await asyncio.sleep(_POLL_S)

    def cut_off(self) -> None:
        """Abort the requests in flight, each with an error that says that the gateway is stopping."""
        self._context.cut_off()


def _match(active: Iterable[RequestView], ident: str) -> RequestView:
    """The request of that id; the oldest where a client gave it to several.

    Raises:
        NotFound: none is under way.
        Conflict: the beginning of an id fits several.
    """
    fits = [r for r in active if r.id.startswith(ident)]
    exact = [r for r in fits if r.id == ident]
    if not fits:
        raise NotFound(
            f"no request {ident!r} is under way", hints=("`cortex requests ls` lists them",)
        )
    if not exact and len(fits) > 1:
        raise Conflict(f"{len(fits)} requests begin with {ident!r}", hints=("say more of the id",))
    return min(exact or fits, key=lambda r: r.started)


def _active_view(exchange: ProxyRequest, now: float, unix: float) -> RequestView:
    record, endpoint = exchange.record, exchange.endpoint
    state, total = exchange.state, now - record.started
    waits = state in {RequestState.QUEUE, RequestState.LOADING}
    tokens_in, tokens_out = exchange.tokens
    return RequestView(
        id=record.ident.decode(),
        key=exchange.key.name if exchange.key else None,
        model=exchange.model or None,
        route=record.route.path,
        node=endpoint.node if endpoint else None,
        instance=endpoint.id if endpoint else None,
        state=state,
        started=unix - total,
        cold_start=record.cold or state is RequestState.LOADING,
        reason=record.reason.decode() or None,
        queue_ms=round((total if waits else record.queued_s) * 1000),
        ttft_ms=None if record.first_s is None else record.first_s * 1000,
        total_ms=total * 1000,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )


def _finished_view(line: RequestLine) -> RequestView:
    """A request that the journal tells of."""
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
