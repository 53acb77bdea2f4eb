"""The audit trail as rows and lines."""

from __future__ import annotations

from datetime import datetime

from cortex_cli.color import Paint, Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column, printable
from cortex_common.schema.audit import AuditEntry

_TONES = {"warn": Tone.WARN, "error": Tone.BAD}
_GOOD = ("ready", "recovered", "node_up")


def entry_tone(entry: AuditEntry) -> Tone | None:
    """The colour of an entry: by its level, or good news."""
    good = Tone.GOOD if entry.event.endswith(_GOOD) else None
    return _TONES.get(entry.level, good)


def facts_line(entry: AuditEntry) -> str:
    """What an entry is about: "model=qwen3-32b node=beast why=most room"."""
    return printable(" ".join(f"{name}={value}" for name, value in entry.facts.items() if value))


def _at(entry: AuditEntry) -> str:
    return datetime.fromtimestamp(entry.at).astimezone().isoformat(sep=" ", timespec="seconds")


def entry_line(entry: AuditEntry, paint: Paint) -> str:
    """An entry by itself, for those who follow."""
    event = paint.tone(f"{printable(entry.event):<18}", entry_tone(entry))
    return f"{paint.dim(_at(entry))}  {event}  {printable(entry.actor):<10}  {facts_line(entry)}"


TRAIL: Kind[AuditEntry] = Kind(
    kind="EventList",
    columns=(
        Column("TIME", _at),
        Column("EVENT", lambda e: e.event, tone=entry_tone),
        Column("ACTOR", lambda e: e.actor),
        Column("ABOUT", facts_line),
    ),
    name=lambda e: e.event,
    nothing="nothing has happened since the gateway started",
)
