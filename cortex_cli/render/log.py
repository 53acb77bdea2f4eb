"""Lines of daemons' and engines' logs."""

from __future__ import annotations

import re
from datetime import datetime

from cortex_cli.color import Colors, Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column
from cortex_cli.terminal import neutralize, neutralize_line
from cortex_common.log_buffer import LogLine

LEVELS = ("debug", "info", "warn", "error")
_TONES = {"debug": Tone.DIM, "warn": Tone.WARN, "error": Tone.BAD}


def _time(line: LogLine) -> str:
    at = datetime.fromtimestamp(line.at).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _tone(line: LogLine) -> Tone | None:
    return _TONES.get(line.level)


def _details(line: LogLine) -> str:
    fields = " ".join(f"{name}={value}" for name, value in line.fields.items())
    return neutralize_line(fields)


_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")


def format_engine_line(line: str, colors: Colors) -> str:
    """Return a line of an engine's log without control codes, except for colors where these are enabled."""
    if not colors.enabled:
        return neutralize(line)
    pieces = _COLOR.split(line)  # colors are at the odd positions
    return "".join(piece if at % 2 else neutralize(piece) for at, piece in enumerate(pieces))


def format_line(line: LogLine, colors: Colors) -> str:
    """Return a line with its traceback below it."""
    level = colors.tone(f"{line.level.upper():<5}", _tone(line))
    text = (
        f"{colors.dim(_time(line))} {level} {neutralize_line(line.event)} {_details(line)}".rstrip()
    )
    traceback = [f"    {neutralize_line(row)}" for row in (line.exception or "").splitlines()]
    return "\n".join([text, *traceback])


LOG_LINES: ListKind[LogLine] = ListKind(
    kind="LogLineList",
    columns=(
        Column("TIME", _time),
        Column("LEVEL", lambda line: line.level, tone=_tone),
        Column("EVENT", lambda line: line.event),
        Column("DETAILS", _details),
        Column("LOGGER", lambda line: line.logger, wide=True),
    ),
    name=lambda line: line.event,
    empty_text="no matching log lines",
)
