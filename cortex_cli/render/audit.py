"""Audit entries as rows and lines."""

from __future__ import annotations

from datetime import datetime

from cortex_cli.color import Colors, Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column
from cortex_cli.terminal import neutralize_line
from cortex_common.schema.audit import AuditEntry

_TONES = {"warn": Tone.WARN, "error": Tone.BAD}
_SUCCESS_SUFFIXES = ("ready", "recovered", "node_up")


def entry_tone(entry: AuditEntry) -> Tone | None:
    """Return the color of an entry: by its level, or success."""
    default = Tone.GOOD if entry.event.endswith(_SUCCESS_SUFFIXES) else None
    return _TONES.get(entry.level, default)


def facts_line(entry: AuditEntry) -> str:
    """Return the fields of an entry: "model=qwen3-32b node=beast reason=most free memory"."""
    return neutralize_line(
        " ".join(f"{name}={value}" for name, value in entry.fields.items() if value)
    )


def _time(entry: AuditEntry) -> str:
    return datetime.fromtimestamp(entry.at).astimezone().isoformat(sep=" ", timespec="seconds")


def entry_line(entry: AuditEntry, colors: Colors) -> str:
    """Return an entry as a line, for `--watch`."""
    event = colors.tone(f"{neutralize_line(entry.event):<18}", entry_tone(entry))
    return f"{colors.dim(_time(entry))}  {event}  {neutralize_line(entry.actor):<10}  {facts_line(entry)}"


EVENTS: ListKind[AuditEntry] = ListKind(
    kind="EventList",
    columns=(
        Column("TIME", _time),
        Column("EVENT", lambda e: e.event, tone=entry_tone),
        Column("ACTOR", lambda e: e.actor),
        Column("DETAILS", facts_line),
    ),
    name=lambda e: e.event,
    empty_text="no events since the gateway started",
)
