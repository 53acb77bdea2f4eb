"""Structured logging on the standard library: an event name and fields, as console lines or JSON.

`event(log, "model_loaded", model=id, node=name)`: the event name is constant, so that it can be searched for; the
fields hold the values. Prompts and secrets are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from typing_extensions import override

LogFormat = Literal["console", "json"]
Level = Literal["debug", "info", "warn", "error"]
LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
"""Level names used in the log, and their numbers in `logging`."""

_LEVEL_NAMES = {number: name for name, number in LEVELS.items()} | {logging.CRITICAL: "error"}


def configure_logging(level: str = "info", fmt: LogFormat = "console") -> None:
    """Send all logging of this process to stderr in one format.

    Args:
        level: debug, info, warning or error.
        fmt: "console" for people, "json" for log collectors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if fmt == "json" else _ConsoleFormatter())
    # Set on the handler too, because a logger with other handlers can have a lower level of its own.
    handler.setLevel(level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for verbose in ("httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(verbose).setLevel(logging.WARNING)


def event(log: logging.Logger, name: str, level: int = logging.INFO, **fields: object) -> None:
    """Log one event. Fields whose value is None are omitted."""
    if log.isEnabledFor(level):
        fields = {k: v for k, v in fields.items() if v is not None}
        log.log(level, name, extra={"fields": fields}, stacklevel=2)


def logs_json() -> bool:
    """Return whether this process logs JSON lines to stderr, so that a fast path can write its own lines there."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    return len(handlers) == 1 and isinstance(handlers[0].formatter, _JsonFormatter)


def level_name(number: int) -> Level:
    """Return the name of a `logging` level; unknown levels count as info."""
    return _LEVEL_NAMES.get(number, "info")


def to_field_value(value: object) -> str | int | float | bool:
    """Convert a field to what the log writes: numbers, booleans and strings, floats rounded to 4 digits."""
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, str | int | bool) else str(value)


class _JsonFormatter(logging.Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": level_name(record.levelno),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= {k: to_field_value(v) for k, v in getattr(record, "fields", {}).items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _ConsoleFormatter(logging.Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = getattr(record, "fields", {}).items()
        fields = "".join(f" {k}={_quote(to_field_value(v))}" for k, v in fields)
        text = f"{time} {level_name(record.levelno):<5} {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _quote(value: object) -> str:
    text = str(value)
    if not text.isprintable():
        # Escape control characters from engines and clients so that they can't act on the terminal.
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text
