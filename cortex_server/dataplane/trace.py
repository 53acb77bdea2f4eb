"""What is remembered of a request for those who ask about it: the client, the journal, the metrics."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from cortex_server.fleet.routing_table import Target
from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.routes import Route
from cortex_server.proxy.trace_context import Span


class Trace(msgspec.Struct):
    """Facts and times of one request; times are the event loop's, in seconds.

    Attributes:
        ident: its id.
        started: when its headers had come.
        last_byte: when the engine last said something.
        first_byte: when the engine first said something of the answer.
        queued_s: how long it waited for its turn or for a load.
        cold: it waited for a load.
        reason: why it went to its instance.
        dropped: what of the request its engine was not told.
        status: HTTP status of the engine, 0 before its head has come; 4xx where the request was at fault, whatever the
            engine said: its instance is not to blame.
        span: its place in a distributed trace; None where nobody follows it.
        turned_away: the name of the key that it came with and that did not let it in.
        for_pages: lines of the answer's head for the script of a web page; empty where none asks.
    """

    route: Route
    ident: bytes
    started: float
    last_byte: float
    first_byte: float | None = None
    queued_s: float = 0.0
    cold: bool = False
    reason: bytes = b""
    dropped: tuple[str, ...] = ()
    status: int = 0
    span: Span | None = None
    turned_away: str | None = None
    for_pages: bytes = b""

    def labels(self, target: Target | None) -> bytes:
        """The lines of a head by which a client can tell what happened to its request."""
        labels = self.route.ident_lines.replace(b"?", self.ident)
        if self.cold:
            labels += b"x-cortex-cold-start: true\r\n"
        if self.queued_s:  # not yet known while it still waits
            labels += b"x-cortex-queue-ms: %d\r\n" % (self.queued_s * 1000)
        if target is not None:
            labels += b"%bx-cortex-route: %b\r\n" % (target.labels, self.reason)
        return labels + self.for_pages

    def asked(self) -> bytes | None:
        """The engine is being asked: the traceparent that it gets, where anybody follows the trace."""
        if self.span is None:
            return None
        self.span.asked_at = self.last_byte
        return self.span.traceparent

    @property
    def first_s(self) -> float | None:
        """Seconds to the answer's first byte."""
        return None if self.first_byte is None else self.first_byte - self.started


class Ended(msgspec.Struct, frozen=True):
    """A request that is over. Its line in the journal is made when it is written or asked for, not in its time.

    Attributes:
        ended: when, by the event loop's time.
        at: the same as Unix seconds.
        key: the name of the key that it came with.
        target: the instance that had it last.
        error: code of what went wrong.
    """

    trace: Trace
    ended: float
    at: float
    key: str | None
    model: str
    target: Target | None
    tokens_in: int
    tokens_out: int
    error: str | None

    def line(self) -> RequestLine:
        """The request's line in the journal."""
        trace, target = self.trace, self.target
        total, first = self.ended - trace.started, trace.first_s
        generating = total - (first or 0.0)
        speed = _tenths(self.tokens_out / generating) if self.tokens_out and generating else None
        return RequestLine(
            ts=datetime.fromtimestamp(self.at, UTC),
            level="info",
            event="request_finished",
            logger="cortex.requests",
            request=trace.ident.decode(),
            route=trace.route.path,
            key=self.key,
            model=self.model or None,
            node=target.node if target else None,
            instance=target.id if target else None,
            outcome=self.error or "ok",
            reason=trace.reason.decode() or None,
            cold_start=trace.cold,
            queue_ms=int(trace.queued_s * 1000),
            time_to_first_token_ms=None if first is None else _tenths(first * 1000),
            total_latency_ms=_tenths(total * 1000),
            prompt_tokens=self.tokens_in,
            completion_tokens=self.tokens_out,
            total_tokens=self.tokens_in + self.tokens_out,
            tok_per_sec=speed,
            dropped=trace.dropped or None,
        )


def _tenths(value: float) -> float:
    """To one decimal; a fifth of what round() costs."""
    return int(value * 10) / 10
