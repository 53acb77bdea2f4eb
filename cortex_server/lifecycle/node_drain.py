"""Draining a node: its models are loaded elsewhere where memory is available, and then unloaded there."""

from __future__ import annotations

import logging

from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_common.schema.plans import DrainPlan, PlannedMove
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.placement.capacity import MEMORY_HOLDING_STATES
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.overlay import Reservation
from cortex_server.placement.plans import Load, Plan, Wait
from cortex_server.placement.state import PlacementRequest

log = logging.getLogger("cortex.operator")

COPY_TIMEOUT_S = 1800.0
"""How long a copy may take to load before its original is drained."""


class NodeDrain:
    """Plans and carries out the drain of a node.

    Args:
        fleet: live state of the nodes.
        controller: loads and unloads.
    """

    def __init__(self, fleet: Fleet, controller: Controller) -> None:
        self._fleet = fleet
        self._controller = controller

    def plan(self, node: str) -> DrainPlan:
        """Return what would become of each instance, assuming the copies before it are in place. Changes nothing."""
        moves: list[PlannedMove] = []
        reservations: list[Reservation] = []
        for view in self._instances(node):
            decision = self._plan_copy(view, node, tuple(reservations))
            load = decision if isinstance(decision, Load) else None
            if load is not None:
                reservations.append(
                    Reservation(
                        InstanceId(f"copy of {view.id}"),
                        ModelId(view.model),
                        load.node,
                        load.devices,
                        load.shape.size.device_mb,
                    )
                )
            moves.append(
                PlannedMove(
                    instance=view.id,
                    model=view.model,
                    to_node=load.node if load else None,
                    to_devices=load.devices if load else (),
                    mb=view.vram_used_mb,
                    in_flight=view.in_flight,
                    load_s=self._controller.measurements.load_seconds(view.model),
                    reason=decision.reason
                    if isinstance(decision, Load | Wait)
                    else "no other node has room for a copy",
                )
            )
        return DrainPlan(node=node, moves=tuple(moves))

    async def run(self, node: str, drain_s: float) -> dict[str, tuple[str, ...]]:
        """Drain the node while it stays cordoned; uncordoning it keeps whatever has not been drained yet.

        Returns:
            The models that were "moved", "unloaded" without a copy, and "kept" because they are still busy or needed.
        """
        outcome: dict[str, list[str]] = {"moved": [], "unloaded": [], "kept": []}
        for view in self._instances(node):
            outcome[await self._move_away(view, drain_s)].append(view.model)
        return {result: tuple(models) for result, models in outcome.items()}

    def _instances(self, node: str) -> list[InstanceView]:
        found = self._fleet.node_snapshot.node(node)
        return [i for i in found.instances if i.state in MEMORY_HOLDING_STATES] if found else []

    def _is_cordoned(self, node: str) -> bool:
        found = self._fleet.node_snapshot.node(node)
        return found is not None and found.cordoned

    def _plan_copy(
        self, view: InstanceView, node: str, reservations: tuple[Reservation, ...]
    ) -> Plan | None:
        """Plan a copy of an instance, without evicting others for it."""
        model_config = self._fleet.model_config(view.model)
        if model_config is None or view.state is not InstanceState.READY:
            return None
        request = PlacementRequest(
            model_config, replica=True, may_evict=False, excluded_nodes=frozenset({node})
        )
        plan, _ = self._controller.planning.plan(request, reservations)
        return plan

    async def _move_away(self, view: InstanceView, drain_s: float) -> str:
        """Load a copy elsewhere where memory is available, then drain and unload the instance; return the outcome."""
        outcome = "unloaded"
        model_config = self._fleet.model_config(view.model)
        if not self._is_cordoned(view.node):
            return "kept"
        if model_config is not None and view.state is InstanceState.READY:
            key = LoadKey(model_config.id, replica=True, may_evict=False)
            try:
                await self._controller.ensure_loaded(model_config, key, timeout_s=COPY_TIMEOUT_S)
                outcome = "moved"
            except CortexError as error:
                event(log, "copy_failed", model=view.model, reason=error.message)
            if not self._is_cordoned(view.node):
                return "kept"
        try:
            await self._controller.unload(view.model, (view,), drain_s, cancel_requests=False)
        except CortexError as error:
            event(log, "drain_failed", logging.WARNING, model=view.model, reason=error.message)
            outcome = "kept"
        return outcome
