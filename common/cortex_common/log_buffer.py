"""What a daemon logged lately, kept in its memory so that operators can read it from where they are.

The log itself goes to stderr, and from there wherever the host keeps logs; this is the end of it, within bounds.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from itertools import islice

from pydantic import Field, ValidationError

from cortex_common.clock import ExactMoment
from cortex_common.errors import UpstreamFailed
from cortex_common.log import level_name, plain
from cortex_common.schema.base import Wire

KEPT_BYTES = 1024 * 1024
"""Bytes of lines that a daemon keeps, about four thousand lines."""

MOST_LINES = 10_000

MEDIA_TYPE = "application/x-ndjson"
"""One `LogLine` a line (https://github.com/ndjson/ndjson-spec)."""

_FOLLOW_EVERY_S = 0.2
_KEEP_ALIVE_S = 5.0


class LogLine(Wire):
    """One line of a daemon's log.

    Attributes:
        at: Unix seconds.
        level: debug, info, warn or error.
        event: stable name, such as "gateway_listening".
        logger: which part said it.
        facts: what it is about.
        exception: traceback, where there is one.
    """

    at: ExactMoment
    level: str
    event: str
    logger: str
    facts: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    exception: str | None = None


class KeptLog(logging.Handler):
    """The last lines that a process logged, whichever thread they came from.

    Args:
        besides: loggers whose lines are kept elsewhere, such as those of requests.
        most_bytes: how much is kept.
    """

    def __init__(self, besides: Sequence[str] = (), most_bytes: int = KEPT_BYTES) -> None:
        super().__init__()
        self._besides = frozenset(besides)
        self._most = most_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._count = 0

    def begin(self) -> None:
        """Keep what this process logs from now on."""
        logging.getLogger().addHandler(self)

    def end(self) -> None:
        """Keep no more."""
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; the caller holds the handler's lock."""
        if record.name in self._besides:
            return
        line = _line_of(record).model_dump_json(exclude_defaults=True).encode() + b"\n"
        self._lines.append(line)
        self._count += 1
        self._bytes += len(line)
        while self._bytes > self._most:
            self._bytes -= len(self._lines.popleft())

    def tail(self, lines: int) -> bytes:
        """The last lines as `LogLine`s in JSON, the oldest first."""
        return self._after(self._count - lines)[0]

    async def follow(self, lines: int, over: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """`tail`, and whatever comes until it is over; an empty line now and then tells quiet from dead."""
        seen, quiet_s = self._count - lines, 0.0
        while not over():
            fresh, seen = self._after(seen)
            if fresh or quiet_s >= _KEEP_ALIVE_S:
                quiet_s = 0.0
                yield fresh or b"\n"
            await asyncio.sleep(_FOLLOW_EVERY_S)
            quiet_s += _FOLLOW_EVERY_S

    def _after(self, number: int) -> tuple[bytes, int]:
        """What is kept of the lines after a number, and the number of the last."""
        self.acquire()
        try:
            fresh = min(self._count - number, len(self._lines))
            first = len(self._lines) - fresh
            return b"".join(islice(self._lines, first, None)), self._count
        finally:
            self.release()


def _line_of(record: logging.LogRecord) -> LogLine:
    facts = getattr(record, "facts", {})
    exception = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
    return LogLine(
        at=record.created,
        level=level_name(record.levelno),
        event=record.getMessage(),
        logger=record.name,
        facts={name: plain(value) for name, value in facts.items()},
        exception=exception,
    )


async def log_lines(pieces: AsyncIterable[str]) -> AsyncIterator[LogLine]:
    """The lines of a daemon's answer, which comes in any pieces.

    Raises:
        UpstreamFailed: it is something else.
    """
    rest = ""
    async for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in filter(None, lines):
            try:
                yield LogLine.model_validate_json(line)
            except ValidationError as failed:
                raise UpstreamFailed(f"this is no log: {line[:80]!r}") from failed
