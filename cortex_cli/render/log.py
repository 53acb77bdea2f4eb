"""Lines of a daemon's log, for people and for programs."""

from __future__ import annotations

import re
from datetime import datetime

from cortex_cli.color import Paint, Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column, printable
from cortex_common.log_buffer import LogLine

LEVELS = ("debug", "info", "warn", "error")
_TONES = {"debug": Tone.DIM, "warn": Tone.WARN, "error": Tone.BAD}


def _at(line: LogLine) -> str:
    at = datetime.fromtimestamp(line.at).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _tone(line: LogLine) -> Tone | None:
    return _TONES.get(line.level)


def _about(line: LogLine) -> str:
    facts = " ".join(f"{name}={value}" for name, value in line.facts.items())
    return printable(facts)


_CODES = re.compile(r"(\x1b\[[0-9;]*m)|\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def engine_line(line: str, paint: Paint) -> str:
    """A line that an engine wrote, with its own colours where colour may be; nothing else of it moves a terminal."""

    def kept(code: re.Match[str]) -> str:
        if len(code[0]) == 1:
            return " "
        return code[1] if code[1] and paint.on else ""

    return _CODES.sub(kept, line)


def line_text(line: LogLine, paint: Paint) -> str:
    """A line by itself, its traceback below it."""
    level = paint.tone(f"{line.level.upper():<5}", _tone(line))
    text = f"{paint.dim(_at(line))} {level} {printable(line.event)} {_about(line)}".rstrip()
    below = [f"    {printable(row)}" for row in (line.exception or "").splitlines()]
    return "\n".join([text, *below])


LOG: Kind[LogLine] = Kind(
    kind="LogLineList",
    columns=(
        Column("TIME", _at),
        Column("LEVEL", lambda line: line.level, tone=_tone),
        Column("EVENT", lambda line: line.event),
        Column("ABOUT", _about),
        Column("LOGGER", lambda line: line.logger, wide=True),
    ),
    name=lambda line: line.event,
    nothing="nothing was logged",
)
