"""Requests as operators see them: those in flight, and the latest finished ones. Numbers and names, never text."""

from __future__ import annotations

from enum import StrEnum

from cortex_common.clock import PreciseTimestamp
from cortex_common.schema.base import StrictWireModel, WireModel
from cortex_common.schema.bounds import Name


class RequestState(StrEnum):
    """The phase that a request is in."""

    QUEUE = "queue"
    """The request is being received, or waits in the admission queue."""

    LOADING = "loading"
    """It waits for a model to load."""

    PREFILL = "prefill"
    """It was sent to an instance, which has not responded yet."""

    DECODE = "decode"
    """The response is being streamed."""

    DONE = "done"
    """It has finished."""


class RequestView(WireModel):
    """One request.

    Attributes:
        id: value of x-request-id; not necessarily unique, because clients can choose it.
        key: name of the API key; None before authentication.
        model: the requested model; None before it is known.
        route: path of the API.
        node, instance: where it is being processed, or was processed last.
        started: Unix seconds.
        cold_start: whether it waited for a load.
        reason: why the load balancer picked that instance.
        queue_ms: milliseconds spent waiting in the queue or for a load, so far.
        ttft_ms: milliseconds to the first byte of the response.
        total_ms: milliseconds from its first byte to its last, or so far.
        tokens_in: prompt tokens, once the engine reported them.
        tokens_out: generated tokens so far.
        outcome: "ok" or an error code; None while it is in flight.
    """

    id: str
    key: str | None = None
    model: str | None = None
    route: str
    node: str | None = None
    instance: str | None = None
    state: RequestState
    started: PreciseTimestamp
    cold_start: bool = False
    reason: str | None = None
    queue_ms: int = 0
    ttft_ms: float | None = None
    total_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    outcome: str | None = None

    @property
    def active(self) -> bool:
        """Whether the request is in flight."""
        return self.state is not RequestState.DONE

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens per second since the first byte; None before that."""
        if self.ttft_ms is None or not self.tokens_out:
            return None
        seconds = (self.total_ms - self.ttft_ms) / 1000
        return self.tokens_out / seconds if seconds > 0 else None


class RequestList(WireModel):
    """GET /operator/v1/requests.

    Attributes:
        at: Unix seconds.
        active: requests in flight, oldest first.
        recent: finished requests, newest first.
    """

    at: PreciseTimestamp
    active: tuple[RequestView, ...] = ()
    recent: tuple[RequestView, ...] = ()


class CancelRequest(StrictWireModel):
    """Request of the operation cancel.

    Attributes:
        request: id of the request, or a unique prefix of it.
    """

    request: Name
