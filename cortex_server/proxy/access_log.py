"""One line a request: the outcome, the timings, and why it went where it went.

The standard library's logging takes some 60 microseconds for such a line, as much as all the rest of a request. Here a
request leaves its facts behind; ten times a second what has come together is put into words, and written in one piece.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, Protocol, Self

import msgspec

from cortex_common.log import event, logs_json
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.routes import Route
from cortex_server.proxy.trace_context import Span

log = logging.getLogger("cortex.requests")

_FLUSH_S = 0.1

KEPT = 500
"""Lines that are kept for operators to look at."""


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What is told of a request; None is left out. The names are those of the requirements."""

    ts: datetime
    level: str
    event: str
    logger: str
    request: str
    route: str
    key: str | None = None
    model: str | None = None
    node: str | None = None
    instance: str | None = None
    outcome: str
    reason: str | None = None
    cold_start: bool = False
    queue_ms: int = 0
    time_to_first_token_ms: float | None = None
    total_latency_ms: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    tok_per_sec: float | None = None
    dropped: tuple[str, ...] | None = None

    def line(self) -> Self:
        """See `Entry`: nothing is left to be found."""
        return self


class Entry(Protocol):
    """A request that is over; its words may not have been found yet."""

    def line(self) -> RequestLine:
        """What is told of it."""
        ...


class AccessLog:
    """Collects request lines and writes them in batches.

    Args:
        loop: whose timer writes.
        out: where JSON lines go; stderr when absent.

    Attributes:
        entries: the last ones, the newest at the end, whether they are written or not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, out: BinaryIO | None = None) -> None:
        self._loop = loop
        self._out = out or sys.stderr.buffer
        self._waiting: list[Entry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encoder = msgspec.json.Encoder()
        self._wanted = log.isEnabledFor(logging.INFO)
        self.entries: deque[Entry] = deque(maxlen=KEPT)

    def last(self, count: int = KEPT) -> list[RequestLine]:
        """The lines of so many of the last entries, the newest first."""
        return [entry.line() for entry in islice(reversed(self.entries), count)]

    def write(self, entry: Entry) -> None:
        """Add a request's line; it is on its way within a tenth of a second."""
        self.entries.append(entry)
        if not self._wanted:
            return
        self._waiting.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what has come together."""
        self._timer = None
        lines = [entry.line() for entry in self._waiting]
        self._waiting = []
        if not logs_json():
            for line in lines:
                keys = {k: v for k, v in msgspec.structs.asdict(line).items() if k not in _ENVELOPE}
                event(log, line.event, **{k: v for k, v in keys.items() if v})
        elif lines:
            self._out.write(b"\n".join([*map(self._encoder.encode, lines), b""]))
            self._out.flush()

    def close(self) -> None:
        """Write the last lines."""
        if self._timer is not None:
            self._timer.cancel()
        self.flush()


_ENVELOPE = frozenset({"ts", "level", "event", "logger"})


class RequestRecord(msgspec.Struct):
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

    def labels(self, endpoint: Endpoint | None) -> bytes:
        """The lines of a head by which a client can tell what happened to its request."""
        labels = self.route.ident_lines.replace(b"?", self.ident)
        if self.cold:
            labels += b"x-cortex-cold-start: true\r\n"
        if self.queued_s:  # not yet known while it still waits
            labels += b"x-cortex-queue-ms: %d\r\n" % (self.queued_s * 1000)
        if endpoint is not None:
            labels += b"%bx-cortex-route: %b\r\n" % (endpoint.labels, self.reason)
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


class FinishedRequest(msgspec.Struct, frozen=True):
    """A request that is over. Its line in the journal is made when it is written or asked for, not in its time.

    Attributes:
        ended: when, by the event loop's time.
        at: the same as Unix seconds.
        key: the name of the key that it came with.
        target: the instance that had it last.
        error: code of what went wrong.
    """

    record: RequestRecord
    ended: float
    at: float
    key: str | None
    model: str
    endpoint: Endpoint | None
    tokens_in: int
    tokens_out: int
    error: str | None

    def line(self) -> RequestLine:
        """The request's line in the journal."""
        record, endpoint = self.record, self.endpoint
        total, first = self.ended - record.started, record.first_s
        generating = total - (first or 0.0)
        speed = _tenths(self.tokens_out / generating) if self.tokens_out and generating else None
        return RequestLine(
            ts=datetime.fromtimestamp(self.at, UTC),
            level="info",
            event="request_finished",
            logger="cortex.requests",
            request=record.ident.decode(),
            route=record.route.path,
            key=self.key,
            model=self.model or None,
            node=endpoint.node if endpoint else None,
            instance=endpoint.id if endpoint else None,
            outcome=self.error or "ok",
            reason=record.reason.decode() or None,
            cold_start=record.cold,
            queue_ms=int(record.queued_s * 1000),
            time_to_first_token_ms=None if first is None else _tenths(first * 1000),
            total_latency_ms=_tenths(total * 1000),
            prompt_tokens=self.tokens_in,
            completion_tokens=self.tokens_out,
            total_tokens=self.tokens_in + self.tokens_out,
            tok_per_sec=speed,
            dropped=record.dropped or None,
        )


def _tenths(value: float) -> float:
    """To one decimal; a fifth of what round() costs."""
    return int(value * 10) / 10
