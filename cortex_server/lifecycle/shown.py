"""What the lifecycle knows, laid over a snapshot for people to see."""

from __future__ import annotations

from dataclasses import replace

from cortex_common.fleet import FleetSnapshot
from cortex_server.lifecycle.pins import PinBoard


def with_pins(snapshot: FleetSnapshot, pins: PinBoard) -> FleetSnapshot:
    """The snapshot with operators' pins on its instances."""
    if not pins.held:
        return snapshot
    nodes = tuple(
        replace(
            node,
            instances=tuple(
                replace(i, pinned=True) if pins.pins(i.model, i.node) else i for i in node.instances
            ),
        )
        for node in snapshot.nodes
    )
    return replace(snapshot, nodes=nodes)
