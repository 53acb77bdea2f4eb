"""Timeouts of requests in flight: silent engines, blocked and unresponsive clients, and keep-alive comments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from cortex_common.errors import UpstreamTimeout
from cortex_common.log import event
from cortex_server.proxy.keep_alive import keep_alive_pause
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.response.verdict import Fault

log = logging.getLogger("cortex.requests")

LINGER_S = 2.0
"""Seconds without an event after a stream's finish reason for which usage and the end of the stream are waited for;
comments do not count. The client waits for the end meanwhile."""

_INTERVAL_S = 1.0


async def watch_timeouts(requests: Collection[ProxyRequest]) -> None:
    """Check the timeouts of all requests once a second, until cancelled.

    One task that visits all requests costs less than a timer for each.

    Args:
        requests: The requests in flight; it changes meanwhile.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_INTERVAL_S)
        now = loop.time()
        for request in tuple(requests):
            check_timeouts(request, now)


def check_timeouts(request: ProxyRequest, now: float) -> None:
    """Give up on a silent engine or client, and keep a waiting stream alive; called once a second.

    Args:
        request: A request in flight.
        now: The event loop's time.
    """
    record, settings = request.record, request.context.settings
    if request.client.is_unresponsive():
        _drop_client(request, "client_vanished")
        return
    if request.client_is_blocked:
        if now - record.last_byte > settings.idle_timeout_s:
            _drop_client(request, "client_stalled")
        return
    attempt = request.attempt
    if attempt is None:
        return
    response = attempt.response
    if response is not None and response.events != request.events_seen:
        request.events_seen = response.events  # the fast path keeps no time
        record.last_byte = request.progressed_at = now
    pause = settings.prefill_comment_after_s
    if (
        pause
        and not attempt.content_sent
        and now - request.commented_at > keep_alive_pause(pause, request.comments)
        and request.can_keep_alive
    ):
        request.keep_alive(b"computing the prompt")
    if response is not None and response.lingering:
        if now - request.progressed_at > LINGER_S:
            attempt.end_early()
        return
    limit = settings.idle_timeout_s if record.status else settings.first_byte_timeout_s
    if now - record.last_byte > limit:
        silent = UpstreamTimeout(f"the engine has been silent for {limit:g} s")
        request.cut_off(silent, Fault.ENGINE)


def _drop_client(request: ProxyRequest, reason: str) -> None:
    """Give up on a client: an engine computes for it, and drains and evictions wait for it."""
    event(log, reason, logging.WARNING, request=request.record.ident.decode())
    request.client.abort()
    request.client_gone()
