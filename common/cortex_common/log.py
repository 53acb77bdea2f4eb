"""Structured logging on the standard library: an event name and keys, as console lines or JSON.

`logs.event(log, "model_loaded", model=id, node=name)`: the name never changes and is what people search for;
the keys carry the facts. No prompt text, no secret is ever a key.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["console", "json"]
Level = Literal["debug", "info", "warn", "error"]
LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
"""What the log names its levels, and what `logging` does."""

_NAMES = {number: name for name, number in LEVELS.items()} | {logging.CRITICAL: "error"}


def event(log: logging.Logger, name: str, level: int = logging.INFO, **keys: object) -> None:
    """Log one event; keys whose value is None are left out."""
    if log.isEnabledFor(level):
        facts = {k: v for k, v in keys.items() if v is not None}
        log.log(level, name, extra={"facts": facts}, stacklevel=2)


def level_name(number: int) -> Level:
    """The name of one of `logging`'s levels; others count as info."""
    return _NAMES.get(number, "info")


def plain(value: object) -> str | int | float | bool:
    """A fact as the log tells it."""
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, str | int | bool) else str(value)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": level_name(record.levelno),
            "event": record.getMessage(),
            "logger": record.name,
        }
        line |= {k: plain(v) for k, v in getattr(record, "facts", {}).items()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        facts = "".join(
            f" {k}={_quoted(plain(v))}" for k, v in getattr(record, "facts", {}).items()
        )
        text = f"{at} {level_name(record.levelno):<5} {record.getMessage()}{facts}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _quoted(value: object) -> str:
    text = str(value)
    if not text.isprintable():
        # What engines and clients wrote must not act on the terminal.
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text


def writes_json() -> bool:
    """Whether this process logs JSON lines to stderr, so that a fast writer may add lines of its own there."""
    out = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    return len(out) == 1 and isinstance(out[0].formatter, _Json)


def set_up(level: str = "info", fmt: LogFormat = "console") -> None:
    """Send all logging of this process to stderr in one format.

    Args:
        level: debug, info, warning or error.
        fmt: "console" for people, "json" for collectors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if fmt == "json" else _Console())
    # On the handler too: a logger that others listen to may have a level of its own.
    handler.setLevel(level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
