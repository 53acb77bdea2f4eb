"""A defragmentation for people: the moves, what each costs, and the room before and after."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.color import Paint, Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column, printable, table
from cortex_common.schema.plans import DefragView, DeviceCapacityView, MoveView, RestartView
from cortex_common.units import format_duration, format_mib

_BAR = 24

_MOVES: Sequence[Column[MoveView]] = (
    Column("MODEL", lambda m: m.model),
    Column("FROM", lambda m: f"{m.node}/{m.device}"),
    Column("TO", lambda m: f"{m.to_node}/{m.to_device}"),
    Column("SIZE", lambda m: format_mib(m.mb), right=True),
    Column("COPY LOADS IN", lambda m: format_duration(m.load_s), right=True),
    Column("ACTIVE", lambda m: str(m.in_flight), right=True),
    Column("INTERRUPTION", lambda m: format_duration(m.interruption_s), right=True),
)

DEFRAGS: Kind[DefragView] = Kind("DefragList", (), lambda d: d.plan, "no plan")


def headline(defrag: DefragView) -> str:
    """What it gains, in one line."""
    if not defrag.moves:
        return printable(defrag.why)
    verb = "made" if defrag.done else "would make"
    took = f" in {format_duration(defrag.seconds)}" if defrag.seconds is not None else ""
    many = "s" * (len(defrag.moves) != 1)
    return printable(
        f"{len(defrag.moves)} move{many} {verb} {format_mib(defrag.after_mb)} free on"
        f" {defrag.node}/{defrag.device}{took}, where {format_mib(defrag.before_mb)} was the most"
    )


def move_line(move: MoveView) -> str:
    """One move in words."""
    return printable(
        f"moves {move.model} from {move.node}/{move.device} to {move.to_node}/{move.to_device}:"
        f" {format_mib(move.mb)}, a copy loads first (about {format_duration(move.load_s)})"
    )


def restart_line(restart: RestartView) -> str:
    """One restart in words."""
    models = ", ".join(restart.models) or "nothing in it"
    if not restart.chosen:
        return printable(f"{restart.node}/{restart.harness} is not restarted: {restart.why}")
    return printable(
        f"restarts {restart.harness} on {restart.node} and loads {models} again"
        f" (about {format_duration(restart.interruption_s)}, requests wait): {restart.why}"
    )


def _room(device: DeviceCapacityView, paint: Paint) -> str:
    def bar(available: int) -> str:
        free = round(_BAR * available / device.total_mb) if device.total_mb else 0
        return "#" * (_BAR - free) + paint.good("." * free)

    return (
        f"{device.node}/{device.device}  [{bar(device.before_mb)}] {format_mib(device.before_mb):>6} free"
        f"  ->  [{bar(device.after_mb)}] {format_mib(device.after_mb):>6} free"
    )


def defrag_text(defrag: DefragView, paint: Paint) -> str:
    """All of it."""
    lines = [paint.tone(headline(defrag), Tone.GOOD if defrag.moves else None)]
    if defrag.moves:
        lines += ["", table(_MOVES, defrag.moves, paint=paint)]
    changed = [d for d in defrag.devices if d.before_mb != d.after_mb]
    if changed:
        lines += ["", *(_room(d, paint) for d in changed)]
    if defrag.restarts:
        lines += ["", *(restart_line(r) for r in defrag.restarts)]
    if defrag.plan and not defrag.done:
        lines += ["", f"plan {defrag.plan}"]
    return "\n".join(lines)
