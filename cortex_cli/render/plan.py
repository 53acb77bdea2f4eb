"""Plans of loads, evictions and drains for people."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_cli.color import Colors, Tone
from cortex_cli.render.fleet import device_list
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column, table
from cortex_cli.terminal import neutralize_line
from cortex_common.schema.plans import DrainPlan, LedgerLine, PlannedEviction, PlannedMove, PlanView
from cortex_common.units import format_duration, format_mib

_HEADLINES = {
    "serve": "{model} is already ready on {place}",
    "join": "{model} is already being loaded on {place}",
    "load": "{model} would be loaded on {place}",
    "wait": "{model} would wait for memory",
    "impossible": "{model} can't be loaded",
}


def _verdict(line: LedgerLine) -> str:
    return "chosen" if line.chosen else line.reason or "not needed"


def _tone(line: LedgerLine) -> Tone | None:
    return Tone.GOOD if line.chosen else Tone.WARN if line.reason else Tone.DIM


_LEDGER: Sequence[Column[LedgerLine]] = (
    Column("DEVICE", lambda x: x.node if x.device is None else f"{x.node}/{x.device}"),
    Column("NAME", lambda x: x.name),
    Column("TOTAL", lambda x: format_mib(x.total_mb) if x.total_mb else "–", right=True),
    Column("AVAILABLE", lambda x: format_mib(x.available_mb) if x.total_mb else "–", right=True),
    Column("MISSING", lambda x: format_mib(x.missing_mb), right=True),
    Column("RECLAIMABLE", lambda x: format_mib(x.reclaimable_mb or None), right=True),
    Column("VERDICT", _verdict, tone=_tone),
)


def place(plan: PlanView) -> str:
    """Format the placement of a plan: "beast/0-1"."""
    devices = device_list(plan.devices)
    return f"{plan.node}/{devices}" if plan.node and devices else plan.node or ""


PLANS: ListKind[PlanView] = ListKind("PlanList", (), lambda p: p.action, "no plan")
EVICTION_PLANS: ListKind[PlannedEviction] = ListKind(
    "EvictionPlanList", (), lambda e: e.instance, "no plan"
)
DRAIN_PLANS: ListKind[DrainPlan] = ListKind("DrainPlanList", (), lambda d: d.node, "no plan")


def headline(plan: PlanView) -> str:
    """Return what would be done in one line."""
    text = _HEADLINES.get(plan.action, "{model}: " + plan.action)
    reason = f": {plan.reason}" if plan.reason else ""
    return neutralize_line(text.format(model=plan.model, place=place(plan)) + reason)


def eviction_line(eviction: PlannedEviction) -> str:
    """Return an eviction as a sentence."""
    busy = f", after {eviction.in_flight} requests in flight" if eviction.in_flight else ""
    return neutralize_line(
        f"evicts {eviction.model} from {eviction.node}: frees {format_mib(eviction.frees_mb)},"
        f" idle {format_duration(eviction.idle_s)}{busy}"
    )


def drain_text(plan: DrainPlan) -> str:
    """Return the destination of each instance of a node, one per line."""
    if not plan.moves:
        return neutralize_line(f"{plan.node} has no instances")
    return "\n".join(map(_move_line, plan.moves))


def _move_line(move: PlannedMove) -> str:
    busy = f", after {move.in_flight} requests in flight" if move.in_flight else ""
    if move.to_node is None:
        return neutralize_line(f"unloads {move.model} ({format_mib(move.mb)}){busy}: {move.reason}")
    devices = device_list(move.to_devices)
    where = f"{move.to_node}/{devices}" if devices else move.to_node
    took = f" in about {format_duration(move.load_s)}" if move.load_s is not None else ""
    return neutralize_line(
        f"moves {move.model} ({format_mib(move.mb)}) to {where}{took}{busy}: {move.reason}"
    )


def plan_text(plan: PlanView, colors: Colors) -> str:
    """Return the whole plan with the verdict on each device."""
    good = plan.action in {"serve", "join", "load"}
    lines = [colors.tone(headline(plan), Tone.GOOD if good else Tone.BAD)]
    if plan.device_mb is not None:
        lines.append(f"needs {format_mib(plan.device_mb)} on each device ({plan.size_source})")
    lines += [eviction_line(e) for e in plan.evictions]
    if plan.ledger:
        lines += ["", table(_LEDGER, plan.ledger, colors=colors)]
    return "\n".join(lines)
