"""What remains of a finished request: counters, a verdict on its instance, and a line in the access log."""

from __future__ import annotations

from collections import Counter

from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import NOWHERE
from cortex_server.proxy.access_log import FinishedRequest
from cortex_server.proxy.context import ProxyContext

_BROKEN_OFF = frozenset({UpstreamFailed.code, UpstreamTimeout.code})

_ENGINE_FAULTS = frozenset({500, 502, 504})
"""Statuses that count against an instance. 503 does not: a busy or loading engine is not broken. Nor does 501, a
feature that it lacks."""


def finish(
    context: ProxyContext,
    finished: FinishedRequest,
    key: Key | None,
    tokens_cached: int,
    repairs: Counter[str] | None,
) -> None:
    """Account for a finished request; called once for each, however it ended.

    Args:
        context: Shared state of the proxy.
        finished: The request.
        key: Key that it came with.
        tokens_cached: Prompt tokens that the engine had in its cache.
        repairs: What was repaired in the engine's response.
    """
    record, endpoint, error = finished.record, finished.endpoint, finished.error
    if endpoint is not None:
        context.fleet.end_request(endpoint)
        record_outcome(context.fleet, endpoint, record.status, error)
        series = endpoint.series
    else:
        series = context.metrics.series(finished.model or NOWHERE, NOWHERE)
    series.count_request(
        finished.ended - record.started,
        record.first_s,
        finished.tokens_in,
        finished.tokens_out,
        cold=record.cold,
        error=error,
        tokens_cached=tokens_cached,
        queued=record.queued_s,
    )
    failed = error is not None
    if endpoint is not None:
        endpoint.counts.add(finished.tokens_in, finished.tokens_out, failed=failed)
        if repairs:
            context.metrics.count_repairs(repairs, endpoint.model, endpoint.engine)
    if key is not None:
        context.access_control.release(
            key, finished.model, finished.tokens_in, finished.tokens_out, failed=failed
        )
    context.access_log.write(finished)
    if context.spans is not None and record.span is not None:
        context.spans.ended(record.span, finished.line(), record.started, finished.ended)


def record_outcome(fleet: Fleet, endpoint: Endpoint, status: int, error: str | None) -> None:
    """Report what a request says about its instance; see `fleet.circuit_breaker`."""
    if error in _BROKEN_OFF or status in _ENGINE_FAULTS:
        fleet.record_failure(endpoint, error or f"engine_{status}")
    elif status:
        fleet.record_success(endpoint)
    else:
        fleet.release_trial(endpoint)
