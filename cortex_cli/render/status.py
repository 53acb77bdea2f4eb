"""The fleet on one screen, for `cortex status`."""

from __future__ import annotations

from cortex_cli.color import Colors, Tone
from cortex_cli.render.fleet import (
    INSTANCES,
    instance_rows,
    node_memory,
    percent,
    problems,
    state_tone,
)
from cortex_cli.render.table import table
from cortex_cli.terminal import neutralize_line
from cortex_common.schema.fleet import FleetSnapshot, ModelState, NodeState, NodeView
from cortex_common.units import format_duration, format_mib

_BAR = 20


def status_text(snapshot: FleetSnapshot, url: str, colors: Colors) -> str:
    """Return a summary, a line with a memory bar for each device, the instances, and the problems."""
    blocks = [_summary(snapshot, url, colors)]
    blocks += [_node(node, colors) for node in snapshot.nodes]
    if rows := instance_rows(snapshot):
        blocks.append(table(INSTANCES.columns, rows, colors=colors))
    if found := problems(snapshot):
        blocks.append("\n".join(f"{colors.warn('!')} {neutralize_line(t)}" for t in found))
    return "\n\n".join(blocks)


def _summary(snapshot: FleetSnapshot, url: str, colors: Colors) -> str:
    up = sum(n.state is NodeState.UP for n in snapshot.nodes)
    ready = sum(m.state is ModelState.READY for m in snapshot.models)
    memory = [node_memory(n) for n in snapshot.nodes]
    used, total = sum(u for u, _ in memory), sum(t for _, t in memory)
    verdict = colors.warn("degraded") if problems(snapshot) else colors.good("ok")
    # Not negative if the clock was set back since the start.
    age = (
        f" {snapshot.gateway_version} up {format_duration(max(0.0, snapshot.at - snapshot.started_at))}"
        if snapshot.started_at
        else ""
    )
    facts = [
        f"gateway {colors.hint(url)}{age}",
        f"nodes {up}/{len(snapshot.nodes)}",
        f"models {ready}/{len(snapshot.models)} ready",
        f"memory {format_mib(used)}/{format_mib(total)} {percent(used, total)}",
        f"active {sum(m.in_flight for m in snapshot.models)}",
        f"waiting {sum(m.waiting for m in snapshot.models)}",
    ]
    return f"{verdict}  " + "  ".join(facts)


def _node(node: NodeView, colors: Colors) -> str:
    state = colors.tone(node.state.value, state_tone(node.state))
    cordoned = colors.warn(" cordoned") if node.cordoned else ""
    reason = f"  {colors.dim(node.reason)}" if node.reason else ""
    lines = [f"{colors.bold(node.name)}  {state}{cordoned}  {colors.dim(node.endpoint)}{reason}"]
    for device in node.devices:
        share = device.vram_used_mb / device.vram_total_mb if device.vram_total_mb else 0.0
        tone = Tone.BAD if share >= 0.95 else Tone.WARN if share >= 0.85 else Tone.GOOD
        filled = round(_BAR * min(1.0, share))
        bar = colors.tone("#" * filled, tone) + "." * (_BAR - filled)
        used, total = format_mib(device.vram_used_mb), format_mib(device.vram_total_mb)
        utilization = "" if device.utilization_pct is None else f"  {device.utilization_pct}% busy"
        temperature = "" if device.temp_c is None else f"  {device.temp_c}°C"
        lines.append(
            f"  {device.index}  {neutralize_line(device.name)}  [{bar}] {used}/{total}"
            f"  {format_mib(device.vram_available_mb)} available{utilization}{temperature}"
        )
    return "\n".join(lines)
