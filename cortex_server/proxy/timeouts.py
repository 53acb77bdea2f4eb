"""Timeouts of requests in flight: silent engines, blocked and unresponsive clients, and keep-alive comments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_common.log import event
from cortex_http.pauses import PauseDetector
from cortex_server.proxy.attempt import Attempt
from cortex_server.proxy.keep_alive import keep_alive_pause
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.response.verdict import Fault

log = logging.getLogger("cortex.requests")

LINGER_S = 2.0
"""Seconds without an event after a stream's finish reason for which usage and the end of the stream are waited for;
comments do not count. The client waits for the end meanwhile."""

_INTERVAL_S = 1.0

_UNACKNOWLEDGED_S = 10.0
"""Seconds after which a host that does not acknowledge a request counts as dead. The kernel of a host acknowledges at
once, whatever its programs do."""


async def watch_timeouts(requests: Collection[ProxyRequest]) -> None:
    """Check the timeouts of all requests once a second, until cancelled.

    One task that visits all requests costs less than a timer for each. Time in which this process stood still counts
    against no engine and no client.

    Args:
        requests: The requests in flight; it changes meanwhile.
    """
    loop = asyncio.get_running_loop()
    pauses = PauseDetector(_INTERVAL_S, loop.time)
    while True:
        await asyncio.sleep(_INTERVAL_S)
        paused_s, now = pauses.tick(), loop.time()
        for request in tuple(requests):
            if paused_s:
                request.skip_time(paused_s)
                continue  # what has arrived meanwhile is read first
            check_timeouts(request, now)


def check_timeouts(request: ProxyRequest, now: float) -> None:
    """Give up on a silent engine or client, and keep a waiting stream alive; called once a second.

    Args:
        request: A request in flight.
        now: The event loop's time.
    """
    if request.client.is_unresponsive():
        _drop_client(request, "client_vanished")
    elif request.client_is_blocked:
        if now - request.record.last_byte > request.context.settings.idle_timeout_s:
            _drop_client(request, "client_stalled")
    elif request.attempt is not None:
        _note_progress(request, request.attempt, now)
        if request.context.fleet.is_unreachable(request.attempt.endpoint.node):
            _check_lost_node(request, request.attempt)
        _keep_alive(request, now)
        _check_engine(request, now)


def _note_progress(request: ProxyRequest, attempt: Attempt, now: float) -> None:
    """Note events that have arrived since the last check; the fast path keeps no time."""
    response = attempt.response
    if response is not None and response.events != request.events_seen:
        request.events_seen = response.events
        request.record.last_byte = request.progressed_at = now


def _keep_alive(request: ProxyRequest, now: float) -> None:
    """Send a comment if nothing has been sent for long, as the engine still computes the prompt."""
    first_s = request.context.settings.prefill_comment_after_s
    if (
        first_s
        and request.attempt is not None
        and not request.attempt.content_sent
        and now - request.commented_at > keep_alive_pause(first_s, request.comments)
        and request.can_keep_alive
    ):
        request.keep_alive(b"computing the prompt")


def _check_engine(request: ProxyRequest, now: float) -> None:
    """End the request if its engine lingers after the answer, or has been silent for too long."""
    attempt, record, settings = request.attempt, request.record, request.context.settings
    if attempt is None:
        return
    upstream = attempt.upstream
    if record.first_byte is None and upstream and upstream.is_unresponsive(_UNACKNOWLEDGED_S):
        lost = UpstreamFailed(f"the host of node {attempt.endpoint.node} does not respond")
        attempt.fail(lost, Fault.LOST, unreachable=True)
        return
    if attempt.response is not None and attempt.response.lingering:
        if now - request.progressed_at > LINGER_S:
            attempt.end_early()
        return
    limit = settings.idle_timeout_s if record.status else settings.first_byte_timeout_s
    if now - record.last_byte > limit:
        silent = UpstreamTimeout(f"the engine has been silent for {limit:g} s")
        request.cut_off(silent, Fault.ENGINE)


def _check_lost_node(request: ProxyRequest, attempt: Attempt) -> None:
    """Send a request on a node that can't be reached elsewhere, or find out whether its host is gone."""
    context, endpoint = request.context, attempt.endpoint
    elsewhere = any(e.node != endpoint.node for e in context.fleet.ready(endpoint.model))
    if elsewhere and not attempt.content_sent and not context.fleet.is_upstream(endpoint.node):
        lost = UpstreamFailed(f"node {endpoint.node} can't be reached")
        attempt.fail(lost, Fault.LOST, unreachable=True)
    else:
        context.host_probes.probe(context.addresses.find(endpoint.url, endpoint.api_key))


def _drop_client(request: ProxyRequest, reason: str) -> None:
    """Give up on a client: an engine computes for it, and drains and evictions wait for it."""
    event(log, reason, logging.WARNING, request=request.record.ident.decode())
    request.client.abort()
    request.client_gone()
