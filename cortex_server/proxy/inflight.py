"""The requests in flight: listing and cancelling for operators, and the drain of a stopping gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from cortex_common.errors import Cancelled, Conflict, NotFound, Unavailable
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

    Attributes:
        requests: Requests between their head and their last byte.
    """

    def __init__(self, context: ProxyContext) -> None:
        self._context = context
        self.requests: set[ProxyRequest] = set()

    @property
    def count(self) -> int:
        """Number of requests in flight."""
        return len(self.requests)

    def list(self, last: int = 0) -> RequestList:
        """Return the requests in flight, oldest first, and the `last` finished ones."""
        now, unix = self._context.loop.time(), time.time()
        active = sorted(self.requests, key=lambda e: e.record.started)
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
            (e for e in self.requests if e.record.ident == found_id),
            key=lambda e: e.record.started,
        )
        event(log, "request_cancelled", request=found_id.decode(), model=found.model)
        found.cut_off(Cancelled("an operator cancelled this request"))
        return _finished_view(self._context.access_log.entries[-1].line())

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self.requests:  # noqa: ASYNC110 - an event for it would cost every request
            await asyncio.sleep(_POLL_S)

    def cut_off(self) -> None:
        """Abort the requests in flight, each with an error that says that the gateway is stopping."""
        for request in tuple(self.requests):
            request.cut_off(Unavailable("the gateway is stopping", retry_after=5.0))


def _match(active: Iterable[RequestView], ident: str) -> RequestView:
    """Return the request with that id, the oldest if clients gave it to several.

    Raises:
        NotFound: No request in flight has that id.
        Conflict: Several ids begin with it.
    """
    matches = [r for r in active if r.id.startswith(ident)]
    exact = [r for r in matches if r.id == ident]
    if not matches:
        raise NotFound(
            f"no request {ident!r} is in flight", hints=("`cortex requests ls` lists them",)
        )
    if not exact and len(matches) > 1:
        raise Conflict(
            f"{len(matches)} requests begin with {ident!r}", hints=("give more of the id",)
        )
    return min(exact or matches, key=lambda r: r.started)


def _active_view(request: ProxyRequest, now: float, unix: float) -> RequestView:
    record, endpoint = request.record, request.endpoint
    state, total = request.state, now - record.started
    waits = state in {RequestState.QUEUE, RequestState.LOADING}
    tokens_in, tokens_out = request.tokens
    return RequestView(
        id=record.ident.decode(),
        key=request.key.name if request.key else None,
        model=request.model or None,
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
    """Return the view of a request that has its line in the access log."""
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
