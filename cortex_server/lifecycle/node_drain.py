"""Emptying a node: its models are loaded elsewhere where there is room, and then ended here."""

from __future__ import annotations

import logging

from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_common.schema.plans import DrainPlan, PlannedMove
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.placement.capacity import TAKING_MEMORY, Reservation
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.planner import Load, Plan, Wait
from cortex_server.placement.state import PlacementRequest

log = logging.getLogger("cortex.operator")

MOVE_S = 1800.0
"""How long a copy may take to load before its original is drained."""


class NodeDrain:
    """See the module.

    Args:
        fleet: the live state.
        conductor: who loads and unloads.
    """

    def __init__(self, fleet: Fleet, controller: Controller) -> None:
        self._fleet = fleet
        self._controller = controller

    def plan(self, node: str) -> DrainPlan:
        """What would become of each instance, every copy with those before it in place. Changes nothing."""
        moves: list[PlannedMove] = []
        reservations: list[Reservation] = []
        for view in self._views(node):
            decided = self._copy(view, node, tuple(reservations))
            found = decided if isinstance(decided, Load) else None
            if found is not None:
                reservations.append(
                    Reservation(
                        InstanceId(f"copy of {view.id}"),
                        ModelId(view.model),
                        found.node,
                        found.devices,
                        found.shape.size.device_mb,
                    )
                )
            moves.append(
                PlannedMove(
                    instance=view.id,
                    model=view.model,
                    to_node=found.node if found else None,
                    to_devices=found.devices if found else (),
                    mb=view.vram_used_mb,
                    in_flight=view.in_flight,
                    load_s=self._controller.measurements.load_seconds(view.model),
                    why=decided.why
                    if isinstance(decided, Load | Wait)
                    else "no other node has room for a copy",
                )
            )
        return DrainPlan(node=node, moves=tuple(moves))

    async def empty(self, node: str, drain_s: float) -> dict[str, tuple[str, ...]]:
        """Do it, as long as the node is cordoned: whoever takes that back keeps what has not been begun.

        Returns:
            The models that were "moved", "unloaded" without a copy, and "kept", because they are busy still or wanted.
        """
        outcome: dict[str, list[str]] = {"moved": [], "unloaded": [], "kept": []}
        for view in self._views(node):
            outcome[await self._move_away(view, drain_s)].append(view.model)
        return {became: tuple(models) for became, models in outcome.items()}

    def _views(self, node: str) -> list[InstanceView]:
        found = self._fleet.bare.node(node)
        return [i for i in found.instances if i.state in TAKING_MEMORY] if found else []

    def _is_cordoned(self, node: str) -> bool:
        found = self._fleet.bare.node(node)
        return found is not None and found.cordoned

    def _copy(
        self, view: InstanceView, node: str, reservations: tuple[Reservation, ...]
    ) -> Plan | None:
        """Where a copy of an instance would go, without anybody else's going for it."""
        model_config = self._fleet.model_config(view.model)
        if model_config is None or view.state is not InstanceState.READY:
            return None
        request = PlacementRequest(
            model_config, replica=True, may_evict=False, avoid=frozenset({node})
        )
        found, _ = self._controller.advice.plan(request, reservations)
        return found

    async def _move_away(self, view: InstanceView, drain_s: float) -> str:
        """Load a copy elsewhere where there is room, then drain and end the instance; says which it was."""
        became = "unloaded"
        model_config = self._fleet.model_config(view.model)
        if not self._is_cordoned(view.node):
            return "kept"
        if model_config is not None and view.state is InstanceState.READY:
            key = LoadKey(model_config.id, replica=True, may_evict=False)
            try:
                await self._controller.want(model_config, key, timeout_s=MOVE_S)
                became = "moved"
            except CortexError as failed:
                event(log, "no_copy", model=view.model, reason=failed.message)
            if not self._is_cordoned(view.node):
                return "kept"
        try:
            await self._controller.unload(view.model, (view,), drain_s, whole=False)
        except CortexError as failed:
            event(log, "not_drained", logging.WARNING, model=view.model, reason=failed.message)
            became = "kept"
        return became
