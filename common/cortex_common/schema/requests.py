"""Requests as operators see them: those under way, and the last that ended. Numbers and names, never text."""

from __future__ import annotations

from enum import StrEnum

from cortex_common.clock import ExactMoment
from cortex_common.schema.base import Wire


class RequestState(StrEnum):
    """How far a request is."""

    QUEUE = "queue"
    """It is still being sent, or waits for its turn."""

    LOADING = "loading"
    """It waits for a load."""

    PREFILL = "prefill"
    """An instance has it and has not answered yet."""

    DECODE = "decode"
    """Its answer is coming."""

    DONE = "done"


class RequestView(Wire):
    """One request.

    Attributes:
        id: as x-request-id has it; a client may choose its own, so it need not be the only one.
        key: name of the key that it came in by; None before that was looked at.
        model: that was asked for; None before that is known.
        route: path of the API.
        node, instance: which has it, or had it last.
        started: Unix seconds.
        cold_start: it waited for a load.
        reason: why it went to that instance.
        queue_ms: milliseconds that it waited for its turn or for a load, so far.
        ttft_ms: milliseconds to the first byte of its answer.
        total_ms: milliseconds from its first byte to its last, or so far.
        tokens_in: of the prompt, once the engine told.
        tokens_out: so far.
        outcome: "ok" or the code of an error; None while it is under way.
    """

    id: str
    key: str | None = None
    model: str | None = None
    route: str
    node: str | None = None
    instance: str | None = None
    state: RequestState
    started: ExactMoment
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
        """Whether it is under way."""
        return self.state is not RequestState.DONE

    @property
    def tokens_per_s(self) -> float | None:
        """The speed at which its answer came, or comes."""
        if self.ttft_ms is None or not self.tokens_out:
            return None
        seconds = (self.total_ms - self.ttft_ms) / 1000
        return self.tokens_out / seconds if seconds > 0 else None


class RequestList(Wire):
    """GET /operator/v1/requests.

    Attributes:
        at: Unix seconds.
        active: under way, the oldest first.
        recent: ended, the newest first.
    """

    at: ExactMoment
    active: tuple[RequestView, ...] = ()
    recent: tuple[RequestView, ...] = ()
