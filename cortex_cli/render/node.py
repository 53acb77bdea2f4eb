"""All about one node: what it is, its devices, what it holds."""

from __future__ import annotations

from cortex_cli.color import Paint
from cortex_cli.render.fleet import (
    DEVICES,
    INSTANCES,
    device_rows,
    instance_rows,
    state_tone,
)
from cortex_cli.render.table import printable, table
from cortex_common.schema.fleet import FleetSnapshot, NodeView
from cortex_common.units import show_duration


def node_text(node: NodeView, snapshot: FleetSnapshot, paint: Paint) -> str:
    """For people: facts, devices, instances."""
    seen = show_duration(max(0.0, snapshot.at - node.seen_at)) if node.seen_at else ""
    facts = [
        ("state", paint.tone(node.state.value, state_tone(node.state))),
        ("reason", node.reason or ""),
        ("cordoned", "yes: nothing new is placed on it" if node.cordoned else ""),
        ("last word", f"{seen} ago" if seen else ""),
        ("endpoint", node.endpoint),
        ("host", " ".join(x for x in (node.hostname, node.os, node.kernel) if x)),
        ("driver", node.driver_version or ""),
        ("cuda", node.cuda_version or ""),
        ("neuron", node.neuron_version),
        ("harnesses", ", ".join(node.harnesses)),
        *(("warning", warning) for warning in node.warnings),
    ]
    parts = ["\n".join(f"{name:<10}  {_kept(value)}" for name, value in facts if value)]
    devices = [r for r in device_rows(snapshot) if r.node == node.name]
    instances = [r for r in instance_rows(snapshot) if r.instance.node == node.name]
    if devices:
        parts.append(table(DEVICES.columns, devices, paint=paint))
    if instances:
        parts.append(table(INSTANCES.columns, instances, paint=paint, wide=True))
    return f"{paint.bold(node.name)}\n" + "\n\n".join(parts)


def _kept(value: str) -> str:
    """On one line; colour of our own is left alone."""
    return value if value.startswith("\x1b[") else printable(value)
