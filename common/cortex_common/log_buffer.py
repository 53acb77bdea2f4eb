"""The latest log lines of a daemon, kept in memory so that operators can read them over its API.

The log itself goes to stderr, and from there to wherever the host stores logs. The buffer is bounded in bytes.
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
from typing_extensions import override

from cortex_common.clock import PreciseTimestamp
from cortex_common.errors import UpstreamFailed
from cortex_common.log import level_name, to_field_value
from cortex_common.schema.base import WireModel

DEFAULT_MAX_BYTES = 1024 * 1024
"""Bytes of log lines that a daemon keeps, about four thousand lines."""

MAX_TAIL_LINES = 10_000
"""Number of lines that one request can ask for."""

MEDIA_TYPE = "application/x-ndjson"
"""One `LogLine` per line (https://github.com/ndjson/ndjson-spec)."""

_FOLLOW_INTERVAL_S = 0.2
_KEEP_ALIVE_S = 5.0


class LogLine(WireModel):
    """One line of a daemon's log.

    Attributes:
        at: Unix seconds.
        level: debug, info, warn or error.
        event: stable event name, such as "gateway_listening".
        logger: name of the logger.
        fields: fields of the event.
        exception: traceback, if there is one.
    """

    at: PreciseTimestamp
    level: str
    event: str
    logger: str
    fields: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    exception: str | None = None


class LogBuffer(logging.Handler):
    """Keeps the latest lines that a process logged, from any thread.

    Args:
        exclude: names of loggers whose lines are stored elsewhere, such as the access log.
        max_bytes: bytes to keep; older lines are dropped.
    """

    def __init__(self, exclude: Sequence[str] = (), max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__()
        self._exclude = frozenset(exclude)
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._count = 0

    def attach(self) -> None:
        """Start to record everything that this process logs."""
        logging.getLogger().addHandler(self)

    def detach(self) -> None:
        """Stop recording."""
        logging.getLogger().removeHandler(self)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        # The caller, `logging.Handler.handle`, holds the handler's lock.
        if record.name in self._exclude:
            return
        line = _to_line(record).model_dump_json(exclude_defaults=True).encode() + b"\n"
        self._lines.append(line)
        self._count += 1
        self._bytes += len(line)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._lines.popleft())

    def tail(self, lines: int) -> bytes:
        """Return the last lines as newline-delimited JSON `LogLine`s, oldest first."""
        return self._since(self._count - lines)[0]

    async def follow(self, lines: int, is_stopped: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """Yield `tail`, then new lines until stopped; empty lines as keep-alives show that the stream is alive."""
        position, quiet_s = self._count - lines, 0.0
        while not is_stopped():
            chunk, position = self._since(position)
            if chunk or quiet_s >= _KEEP_ALIVE_S:
                quiet_s = 0.0
                yield chunk or b"\n"
            await asyncio.sleep(_FOLLOW_INTERVAL_S)
            quiet_s += _FOLLOW_INTERVAL_S

    def _since(self, position: int) -> tuple[bytes, int]:
        """Return the lines after the first `position` ones, as far as they are kept, and the new position."""
        self.acquire()
        try:
            new = min(self._count - position, len(self._lines))
            start = len(self._lines) - new
            return b"".join(islice(self._lines, start, None)), self._count
        finally:
            self.release()


async def parse_log_lines(chunks: AsyncIterable[str]) -> AsyncIterator[LogLine]:
    """Parse a daemon's log response, split into chunks at arbitrary places.

    Raises:
        UpstreamFailed: the response is not a log.
    """
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in filter(None, lines):
            try:
                yield LogLine.model_validate_json(line)
            except ValidationError as error:
                raise UpstreamFailed(f"not a log line: {line[:80]!r}") from error


def _to_line(record: logging.LogRecord) -> LogLine:
    fields = getattr(record, "fields", {})
    exception = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else None
    return LogLine(
        at=record.created,
        level=level_name(record.levelno),
        event=record.getMessage(),
        logger=record.name,
        fields={name: to_field_value(value) for name, value in fields.items()},
        exception=exception,
    )
