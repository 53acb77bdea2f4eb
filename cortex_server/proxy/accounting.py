"""What remains of requests and their attempts: counters, usage, access log lines, and verdicts on instances."""

from __future__ import annotations

from collections import Counter

from cortex_common.errors import CortexError
from cortex_server.auth.keys import Key
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import NOWHERE
from cortex_server.proxy.access_log import NO_TOKENS, FinishedRequest, TokenCounts
from cortex_server.proxy.adapters.base import DialectAdapter
from cortex_server.proxy.attempt import Attempt
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.response.verdict import Fault


def count_tokens(attempt: Attempt | None, adapter: DialectAdapter | None) -> TokenCounts:
    """Return what a request used: as the engine reports it, else estimated.

    An engine reports nothing when its client leaves or when it breaks off, and some never do. It has computed the
    prompt all the same, and an event of a stream is about one token.

    Args:
        attempt: The attempt that was answered or is in progress; None if no engine computed anything.
        adapter: Adapter of the request.
    """
    if attempt is None or adapter is None or not attempt.was_sent:
        return NO_TOKENS
    response = attempt.response
    usage = response.usage if response is not None else None
    if usage is not None:
        return TokenCounts(*usage.bounded_counts)
    try:
        prompt = adapter.input_tokens()
    except CortexError:
        prompt = 0
    completion = response.output_tokens if response is not None else 0
    return TokenCounts(prompt, completion, 0, estimated=bool(prompt or completion))


def finish(
    context: ProxyContext,
    finished: FinishedRequest,
    key: Key | None,
    repairs: Counter[str] | None,
) -> None:
    """Account for a finished request; called once for each, however it ended.

    Args:
        context: Shared state of the proxy.
        finished: The request.
        key: Key that it came with.
        repairs: What was repaired in the engine's response.
    """
    record, endpoint, error = finished.record, finished.endpoint, finished.error
    prompt, completion, cached, _ = finished.tokens
    series = (
        context.metrics.series(finished.model or NOWHERE, NOWHERE)
        if endpoint is None
        else endpoint.series
    )
    series.count_request(
        finished.ended - record.started,
        record.first_s,
        prompt,
        completion,
        cold=record.cold,
        error=error,
        tokens_cached=cached,
        queued=record.queued_s,
    )
    failed = error is not None
    if endpoint is not None:
        endpoint.counts.add(prompt, completion, failed=failed)
        if repairs:
            context.metrics.count_repairs(repairs, endpoint.model, endpoint.engine)
    if key is not None:
        context.access_control.release(key, finished.model, prompt, completion, failed=failed)
    context.access_log.write(finished)
    if context.spans is not None and record.span is not None:
        context.spans.ended(record.span, finished.line(), record.started, finished.ended)


def record_outcome(
    fleet: Fleet, endpoint: Endpoint, fault: Fault | None, error: CortexError | None
) -> None:
    """Count the end of an attempt, and what it says about its instance; see `response.verdict`.

    Args:
        fleet: Owner of the instance's state.
        endpoint: The instance.
        fault: Whose fault it is that there is no whole answer; None if there is one.
        error: What went wrong.
    """
    fleet.end_request(endpoint)
    if fault is None or fault is Fault.CLIENT:
        fleet.record_success(endpoint)
    elif fault.is_failure:
        fleet.record_failure(endpoint, error.message if error is not None else fault)
    elif fault is Fault.BUSY and error is not None:
        fleet.cool_down(endpoint, error.retry_after, error.message)
    else:
        fleet.release_trial(endpoint)
