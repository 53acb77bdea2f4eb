"""What the lifecycle knows, laid over a snapshot for people to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cortex_common.config.catalogue import ModelProfile
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, ModelState, ModelView
from cortex_common.schema.instances import InstanceId
from cortex_server.lifecycle.pins import PinBoard
from cortex_server.placement.desired_state import Upkeep
from cortex_server.placement.failure_backoff import Trouble


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


def with_reasons(
    snapshot: FleetSnapshot,
    why: Mapping[InstanceId, str],
    profiles: Mapping[str, ModelProfile],
    upkeep: Upkeep,
    failures: Mapping[str, Trouble],
    now: float,
) -> FleetSnapshot:
    """The snapshot with why each instance is where it is, why models could not be loaded, and when idle ones go.

    Args:
        snapshot: with pins already.
        why: the reasons of this gateway's loads.
        profiles: by model id.
        upkeep: who ends idle models.
        failures: of the last load of a model; where no engine was started, no instance tells of it.
        now: monotonic seconds.
    """
    nodes = tuple(
        replace(
            node,
            instances=tuple(
                replace(i, reason=why[i.id]) if i.id in why else i for i in node.instances
            ),
        )
        for node in snapshot.nodes
    )
    of_model: dict[str, list[InstanceView]] = {}
    for i in snapshot.instances():
        of_model.setdefault(i.model, []).append(i)

    def told(model: ModelView) -> ModelView:
        if model.state is ModelState.UNLOADED and model.id in failures:
            return replace(model, state=ModelState.FAILED, error=failures[model.id].reason)
        profile = profiles.get(model.id)
        if profile is None:
            return model
        left = upkeep.ends_in(profile, of_model.get(model.id, ()), now)
        return model if left is None else replace(model, unload_at=snapshot.at + left)

    return replace(snapshot, nodes=nodes, models=tuple(map(told, snapshot.models)))
