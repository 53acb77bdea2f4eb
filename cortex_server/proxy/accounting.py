"""What remains of a finished request: counters, a verdict on its instance, and a line in the access log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import NOWHERE
from cortex_server.proxy.access_log import FinishedRequest

if TYPE_CHECKING:
    from cortex_server.proxy.request import ProxyRequest

_BROKEN_OFF = frozenset({UpstreamFailed.code, UpstreamTimeout.code})

_ENGINE_FAULTS = frozenset({500, 502, 504})
"""Statuses that count against an instance. 503 does not: a busy or loading engine is not broken. Nor does 501, a
feature that it lacks."""


def finish(request: ProxyRequest, now: float, error: str | None) -> None:
    """Account for a finished request; called once for each, however it ended.

    Args:
        request: The request.
        now: The event loop's time.
        error: Code of what went wrong.
    """
    context, record, key = request.context, request.record, request.key
    model, endpoint, response = request.model, request.endpoint, request.response
    if endpoint is not None:
        context.fleet.end_request(endpoint)
        record_outcome(context.fleet, endpoint, record.status, error)
        series = endpoint.series
    else:
        series = context.metrics.series(model or NOWHERE, NOWHERE)
    tokens_in, tokens_out, cached = response.token_counts() if response is not None else (0, 0, 0)
    series.count_request(
        now - record.started,
        record.first_s,
        tokens_in,
        tokens_out,
        cold=record.cold,
        error=error,
        tokens_cached=cached,
        queued=record.queued_s,
    )
    if endpoint is not None:
        endpoint.counts.add(tokens_in, tokens_out, failed=error is not None)
        if response is not None and response.repairs:
            context.metrics.count_repairs(response.repairs, endpoint.model, endpoint.engine)
    if key is not None:
        context.access_control.release(key, model, tokens_in, tokens_out, failed=error is not None)
    name = key.name if key else record.rejected_key
    finished = FinishedRequest(
        record, now, time.time(), name, model, endpoint, tokens_in, tokens_out, error
    )
    context.access_log.write(finished)
    if context.spans is not None and record.span is not None:
        context.spans.ended(record.span, finished.line(), record.started, now)


def record_outcome(fleet: Fleet, endpoint: Endpoint, status: int, error: str | None) -> None:
    """Report what a request says about its instance; see `fleet.circuit_breaker`."""
    if error in _BROKEN_OFF or status in _ENGINE_FAULTS:
        fleet.record_failure(endpoint, error or f"engine_{status}")
    elif status:
        fleet.record_success(endpoint)
    else:
        fleet.release_trial(endpoint)
