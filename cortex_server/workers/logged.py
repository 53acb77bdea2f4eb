"""A worker's log, written by the control process: one writer, and operators read it with the rest."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from cortex_server.workers.wire import Logged


class Told(logging.Handler):
    """Hands each record to the control process; to stderr, where that is gone.

    Args:
        tell: sends a message there, and says whether there is anybody to hear it.
    """

    def __init__(self, tell: Callable[[Logged], bool]) -> None:
        super().__init__()
        self._tell = tell
        self._plain = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Part of logging.Handler."""
        facts = {name: _plain(value) for name, value in getattr(record, "facts", {}).items()}
        if record.exc_info:
            facts["exception"] = self._plain.formatException(record.exc_info)
        if not self._tell(Logged(record.name, record.levelno, record.getMessage(), facts)):
            sys.stderr.write(f"{record.levelname} {record.getMessage()} {facts}\n")


def set_up(level: int, tell: Callable[[Logged], bool]) -> None:
    """Send all logging of this process there."""
    root = logging.getLogger()
    root.handlers[:] = [Told(tell)]
    root.setLevel(level)
    for chatty in ("uvicorn", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_again(told: Logged, worker: int) -> None:
    """Log what a worker logged."""
    log = logging.getLogger(told.logger)
    if log.isEnabledFor(told.level):
        log.log(told.level, told.event, extra={"facts": {"worker": worker, **told.facts}})


def _plain(value: object) -> str | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
