"""One line a request: the outcome, the timings, and why it went where it went.

The standard library's logging takes some 60 microseconds for such a line, as much as all the rest of a request. Here a
request leaves its facts behind; ten times a second what has come together is put into words, and written in one piece.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from datetime import datetime
from itertools import islice
from typing import BinaryIO, Protocol, Self

import msgspec

from cortex_common.log import event, writes_json

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


class Journal:
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
        if not writes_json():
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
