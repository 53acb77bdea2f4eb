"""Defragmentation plans and results for people: the moves, their cost, and free memory before and after."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.color import Colors, Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column, table
from cortex_cli.terminal import neutralize_line
from cortex_common.schema.plans import DefragView, DeviceCapacityView, MoveView, RestartView
from cortex_common.units import format_duration, format_mib

_BAR = 24

_MOVES: Sequence[Column[MoveView]] = (
    Column("MODEL", lambda m: m.model),
    Column("FROM", lambda m: f"{m.node}/{m.device}"),
    Column("TO", lambda m: f"{m.to_node}/{m.to_device}"),
    Column("SIZE", lambda m: format_mib(m.mb), right=True),
    Column("LOAD TIME", lambda m: format_duration(m.load_s), right=True),
    Column("ACTIVE", lambda m: str(m.in_flight), right=True),
    Column("INTERRUPTION", lambda m: format_duration(m.interruption_s), right=True),
)

DEFRAGS: ListKind[DefragView] = ListKind("DefragList", (), lambda d: d.plan, "no plan")


def headline(defrag: DefragView) -> str:
    """Return the gain in one line."""
    if not defrag.moves:
        return neutralize_line(defrag.reason)
    verb, was = ("made", "was") if defrag.done else ("would make", "is")
    took = f" in {format_duration(defrag.seconds)}" if defrag.seconds is not None else ""
    plural = "s" * (len(defrag.moves) != 1)
    return neutralize_line(
        f"{len(defrag.moves)} move{plural} {verb} {format_mib(defrag.after_mb)} free on"
        f" {defrag.node}/{defrag.device}{took}; the largest free block {was} {format_mib(defrag.before_mb)}"
    )


def move_line(move: MoveView) -> str:
    """Return one move as a sentence."""
    return neutralize_line(
        f"moves {move.model} from {move.node}/{move.device} to {move.to_node}/{move.to_device}:"
        f" {format_mib(move.mb)}, a copy loads first (about {format_duration(move.load_s)})"
    )


def restart_line(restart: RestartView) -> str:
    """Return one restart as a sentence."""
    models = ", ".join(restart.models) or "nothing"
    if not restart.chosen:
        return neutralize_line(
            f"{restart.node}/{restart.harness} is not restarted: {restart.reason}"
        )
    return neutralize_line(
        f"restarts {restart.harness} on {restart.node} and reloads {models}"
        f" (about {format_duration(restart.interruption_s)}, requests wait): {restart.reason}"
    )


def _free_line(device: DeviceCapacityView, colors: Colors) -> str:
    def bar(available: int) -> str:
        free = round(_BAR * available / device.total_mb) if device.total_mb else 0
        return "#" * (_BAR - free) + colors.good("." * free)

    return (
        f"{device.node}/{device.device}  [{bar(device.before_mb)}] {format_mib(device.before_mb):>6} free"
        f"  ->  [{bar(device.after_mb)}] {format_mib(device.after_mb):>6} free"
    )


def defrag_text(defrag: DefragView, colors: Colors) -> str:
    """Return the whole text."""
    lines = [colors.tone(headline(defrag), Tone.GOOD if defrag.moves else None)]
    if defrag.moves:
        lines += ["", table(_MOVES, defrag.moves, colors=colors)]
    changed = [d for d in defrag.devices if d.before_mb != d.after_mb]
    if changed:
        lines += ["", *(_free_line(d, colors) for d in changed)]
    if defrag.restarts:
        lines += ["", *(restart_line(r) for r in defrag.restarts)]
    if defrag.plan and not defrag.done:
        lines += ["", f"plan {defrag.plan}"]
    return "\n".join(lines)
