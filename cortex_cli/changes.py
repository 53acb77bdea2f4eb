"""What happened between two snapshots, as lines of a log. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_cli.render.fleet import place
from cortex_cli.render.table import printable
from cortex_common.fleet import FleetSnapshot, InstanceView
from cortex_common.models import InstanceState
from cortex_common.units import show_duration, show_mib


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened.

    Attributes:
        at: Unix seconds.
        state: what its subject is now, for the colour.
    """

    at: float
    subject: str
    state: str
    text: str


def changes(before: FleetSnapshot | None, after: FleetSnapshot) -> list[Change]:
    """Nodes and instances that came, went, or changed their state."""
    if before is None:
        return []
    found = []
    known_nodes = {n.name: n.state for n in before.nodes}
    for node in after.nodes:
        if known_nodes.get(node.name) != node.state:
            why = f": {printable(node.reason)}" if node.reason else ""
            found.append(
                Change(after.at, node.name, node.state, f"node {node.name} is {node.state}{why}")
            )
    known = {i.id: i for i in before.instances()}
    now = {i.id: i for i in after.instances()}
    for key, instance in now.items():
        past = known.get(key)
        if past is None or past.state is not instance.state:
            found.append(Change(after.at, instance.model, instance.state, _told(instance)))
    found += [
        Change(after.at, i.model, InstanceState.STOPPED, f"{i.model} left {place(i)}")
        for key, i in known.items()
        if key not in now
    ]
    return found


def _told(instance: InstanceView) -> str:
    where = place(instance)
    match instance.state:
        case InstanceState.READY:
            took = f" after {show_duration(instance.load_seconds)}" if instance.load_seconds else ""
            return f"{instance.model} is ready on {where}{took}, {show_mib(instance.vram_used_mb)}"
        case InstanceState.FAILED:
            return f"{instance.model} failed on {where}: {printable(instance.error or 'no reason given')}"
        case _:
            return f"{instance.model} is {instance.state} on {where}"
