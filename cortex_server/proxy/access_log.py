"""The access log: one line per request with its outcome, its timings, and the reason for its routing.

The standard library's logging takes about 60 microseconds for such a line, as much as the rest of a request. Here a
request leaves its facts behind, and ten times a second the lines are formatted and written in one piece.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO, NamedTuple, Protocol, Self

import msgspec

from cortex_common.log import event, logs_json
from cortex_server.fleet.routing_table import Endpoint
from cortex_server.proxy.request_head import Route
from cortex_server.proxy.trace_context import Span

log = logging.getLogger("cortex.requests")

_FLUSH_INTERVAL_S = 0.1

KEPT = 500
"""Lines kept in memory for operators."""


class RequestLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line; fields that are None are left out. The field names are those of the requirements."""

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
    tokens_estimated: bool = False
    tok_per_sec: float | None = None
    dropped: tuple[str, ...] | None = None

    def line(self) -> Self:
        """Return itself."""
        return self


class Entry(Protocol):
    """A finished request, formatted or not."""

    def line(self) -> RequestLine:
        """Return its line."""
        ...


class AccessLog:
    """Collects request lines and writes them in batches.

    Args:
        loop: The event loop.
        out: Where JSON lines go; stderr by default.

    Attributes:
        entries: The last entries, the newest at the end, written or not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, out: BinaryIO | None = None) -> None:
        self._loop = loop
        self._out = out or sys.stderr.buffer
        self._unwritten: list[Entry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encoder = msgspec.json.Encoder()
        self._enabled = log.isEnabledFor(logging.INFO)
        self.entries: deque[Entry] = deque(maxlen=KEPT)

    def last(self, count: int = KEPT) -> list[RequestLine]:
        """Return the lines of the last `count` entries, the newest first."""
        return [entry.line() for entry in islice(reversed(self.entries), count)]

    def write(self, entry: Entry) -> None:
        """Add a request; its line is written within a tenth of a second."""
        self.entries.append(entry)
        if not self._enabled:
            return
        self._unwritten.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Write the collected lines."""
        self._timer = None
        lines = [entry.line() for entry in self._unwritten]
        self._unwritten = []
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
        route: The requested route.
        ident: Request id.
        started: When its head had arrived.
        last_byte: When the engine last sent something.
        first_byte: When the engine sent the first byte of the response.
        queued_s: Seconds that it waited for admission or for a load.
        cold: Whether it waited for a load.
        reason: Why it was routed to its instance.
        dropped: Request fields that the engine was not given.
        status: HTTP status of the engine, 0 before its head has arrived.
        span: Its spans; None when it is not traced.
        rejected_key: Name of the key that it came with but that did not admit it.
        cors_headers: CORS header lines of the response; empty when no web page asks.
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
    rejected_key: str | None = None
    cors_headers: bytes = b""

    def labels(self, endpoint: Endpoint | None) -> bytes:
        """Return the header lines that tell a client what happened to its request."""
        labels = self.route.id_lines.replace(b"?", self.ident)
        if self.cold:
            labels += b"x-cortex-cold-start: true\r\n"
        if self.queued_s:  # not known while it still waits
            labels += b"x-cortex-queue-ms: %d\r\n" % (self.queued_s * 1000)
        if endpoint is not None:
            labels += b"%bx-cortex-route: %b\r\n" % (endpoint.response_headers, self.reason)
        return labels + self.cors_headers

    def engine_traceparent(self) -> bytes | None:
        """Note that the request is sent to the engine; return its traceparent if the request is traced."""
        if self.span is None:
            return None
        self.span.engine_started = self.last_byte
        return self.span.traceparent

    @property
    def first_s(self) -> float | None:
        """Seconds to the first byte of the response."""
        return None if self.first_byte is None else self.first_byte - self.started


class TokenCounts(NamedTuple):
    """What a request used.

    Attributes:
        prompt: Prompt tokens.
        completion: Completion tokens.
        cached: Prompt tokens that the engine had in its cache.
        estimated: Whether the engine did not report them.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: bool = False


NO_TOKENS = TokenCounts()


class FinishedRequest(msgspec.Struct, frozen=True):
    """A finished request; its line is formatted when it is written or listed, not while others wait.

    Attributes:
        record: Its facts and times.
        ended: When it finished, by the event loop's time.
        at: The same as Unix seconds.
        key: Name of the key that it came with.
        model: Model id; empty if none was found.
        endpoint: Instance that it was sent to last.
        tokens: What it used.
        error: Code of what went wrong.
    """

    record: RequestRecord
    ended: float
    at: float
    key: str | None
    model: str
    endpoint: Endpoint | None
    tokens: TokenCounts
    error: str | None

    def line(self) -> RequestLine:
        """Return its line."""
        record, endpoint = self.record, self.endpoint
        total, first = self.ended - record.started, record.first_s
        generating = total - (first or 0.0)
        prompt, completion = self.tokens.prompt, self.tokens.completion
        speed = _tenths(completion / generating) if completion and generating else None
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
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            tokens_estimated=self.tokens.estimated,
            tok_per_sec=speed,
            dropped=record.dropped or None,
        )


def _tenths(value: float) -> float:
    """Truncate to one decimal, for a fifth of what round() costs."""
    return int(value * 10) / 10
