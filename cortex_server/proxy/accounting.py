"""What a request leaves behind: counts, a verdict on its instance, a line in the journal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cortex_common.errors import UpstreamFailed, UpstreamTimeout
from cortex_common.schema.instances import ModelId
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import NOWHERE
from cortex_server.proxy.access_log import FinishedRequest, RequestRecord
from cortex_server.proxy.response import EngineResponse

if TYPE_CHECKING:
    from cortex_server.proxy.context import ProxyContext

_CUT_OFF = frozenset({UpstreamFailed.code, UpstreamTimeout.code})

_ENGINE_FAULTS = frozenset({500, 502, 504})
"""503 is not among them: a busy or loading engine is not a broken one, nor is 501, which it never had."""


def finish(
    context: ProxyContext,
    record: RequestRecord,
    now: float,
    *,
    key: Key | None,
    model: ModelId,
    endpoint: Endpoint | None,
    answer: EngineResponse | None,
    error: str | None,
) -> None:
    """Close the books on a request. Called once for each, whatever became of it.

    Args:
        context: what all requests share.
        record: of the request.
        now: the event loop's time.
        key: by which it came in; None when it was sent away before.
        model: that was asked for; empty when none was found.
        endpoint: the instance that had it last.
        answer: what was told to the client.
        error: code of what went wrong.
    """
    if endpoint is not None:
        context.fleet.release(endpoint)
        record_outcome(context.fleet, endpoint, record.status, error)
        series = endpoint.series
    else:
        series = context.metrics.series(model or NOWHERE, NOWHERE)
    tokens_in, tokens_out, cached = answer.counted() if answer is not None else (0, 0, 0)
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
    if answer is not None and answer.repairs and endpoint is not None:
        context.metrics.count_repairs(answer.repairs, endpoint.model, endpoint.engine)
    if key is not None:
        context.access_control.release(key, model, tokens_in, tokens_out, failed=error is not None)
    name = key.name if key else record.turned_away
    over = FinishedRequest(
        record, now, time.time(), name, model, endpoint, tokens_in, tokens_out, error
    )
    context.access_log.write(over)
    if context.spans is not None and record.span is not None:
        context.spans.ended(record.span, over.line(), record.started, now)


def record_outcome(fleet: Fleet, endpoint: Endpoint, status: int, error: str | None) -> None:
    """What a request says of its instance: see `core.breaker`."""
    if error in _CUT_OFF or status in _ENGINE_FAULTS:
        fleet.failed(endpoint, error or f"engine_{status}")
    elif status:
        fleet.answered(endpoint)
    else:
        fleet.untried(endpoint)
