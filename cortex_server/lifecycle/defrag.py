"""Defragmentation for operators: a plan with an id, and the same plan carried out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, NotSupported
from cortex_common.log import event
from cortex_common.schema.plans import (
    ApplyDefragRequest,
    DefragRequest,
    DefragView,
    DeviceCapacityView,
    MoveView,
    RestartView,
)
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.lifecycle.engine_restarts import EngineRestarts
from cortex_server.placement.defrag import Budget, DefragPlan, Move, plan_defrag
from cortex_server.placement.engine_restarts import Restart, within_time_budget
from cortex_server.placement.fit import PlacementConstraints, possible_shapes
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.state import ClusterState

log = logging.getLogger("cortex.operator")


class DefragRunner:
    """Plans and carries out defragmentation.

    Args:
        fleet: live state of the nodes.
        controller: loads and unloads.
        restarts: restarts attached engines.
        clock: for durations.
        resolve_model_config: finds the model config of a name.
        check_node: rejects a node that has no neuron.
    """

    def __init__(
        self,
        fleet: Fleet,
        controller: Controller,
        restarts: EngineRestarts,
        clock: Clock,
        profile_of: Callable[[str], ModelConfig],
        check_node: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._controller = controller
        self._restarts = restarts
        self._clock = clock
        self._resolve_model_config = profile_of
        self._check_node = check_node

    def plan(self, request: DefragRequest) -> DefragView:
        """Plan moves and restarts.

        Raises:
            ModelNotFound: the request names a model without a model config.
            NodeNotFound: the request names an unknown node.
            NotSupported: the model spans several devices.
        """
        return self._plan(request).view

    async def apply(self, request: ApplyDefragRequest) -> DefragView:
        """Carry out exactly the plan that was shown: each move (copy, shift, drain, unload), then the restarts.

        Raises:
            Conflict: the same request yields another plan now.
            CortexError: a copy could not be loaded, an original drained, or an engine restarted; what was done stays
                done.
        """
        plan = self._plan(request.request)
        view = plan.view
        if not view.plan or view.plan != request.plan:
            raise Conflict(
                "the fleet has changed since that plan was made",
                hints=("plan again and review the new plan",),
                details={"plan": view.plan},
            )
        started = self._clock.monotonic()
        for move in plan.moves:
            await self._make_move(move, request.drain_timeout_s)
        for restart in plan.restarts:
            await self._restarts.restart(restart, request.drain_timeout_s)
        seconds = self._clock.monotonic() - started
        return view.model_copy(update={"done": True, "seconds": seconds})

    async def _make_move(self, move: Move, drain_s: float) -> None:
        event(log, "move_started", model=move.model, instance=move.instance, to=move.to_node)
        constraints = PlacementConstraints(move.to_node, (move.to_device,))
        key = LoadKey(move.model, constraints, replica=True, may_evict=False)
        model_config = self._resolve_model_config(move.model)
        await self._controller.ensure_loaded(
            model_config, key, timeout_s=max(60.0, move.seconds * 5)
        )
        views = [i for i in self._fleet.snapshot.instances() if i.id == move.instance]
        await self._controller.unload(
            move.model, views, drain_s, cancel_requests=False, reason="defrag"
        )

    def _plan(self, request: DefragRequest) -> _Planned:
        cluster = self._controller.planning.cluster()
        if request.node is not None:
            self._check_node(request.node)
        wanted_mb = None
        if request.model is not None:
            shape = possible_shapes(self._resolve_model_config(request.model), cluster.sizes)[0]
            if shape.devices > 1:
                raise NotSupported(
                    f"{request.model} spans {shape.devices} devices; defrag creates blocks on one device",
                    hints=("cortex plan load shows what would be evicted for it",),
                )
            wanted_mb = shape.size.device_mb
        budget = Budget(request.max_moves, request.max_seconds, request.cross_node)
        plan = plan_defrag(
            cluster.capacities, cluster.stats, budget, wanted_mb=wanted_mb, only=request.node
        )
        moves = plan.moves if plan is not None else ()
        due = [
            r
            for r in self._restarts.due()
            if request.model is None and request.node in {None, r.node}
        ]
        restarts = within_time_budget(due, request.max_seconds - sum(m.seconds for m in moves))
        view = _view(plan, cluster, wanted_mb, cross_node=request.cross_node).model_copy(
            update={
                "plan": _id(plan, restarts) if moves or restarts else "",
                "restarts": tuple(_restart_view(r, chosen=r in restarts) for r in due),
            }
        )
        return _Planned(moves, restarts, view)


@dataclass(frozen=True, slots=True)
class _Planned:
    """What would be done, and the same as a view."""

    moves: tuple[Move, ...]
    restarts: tuple[Restart, ...]
    view: DefragView


def _restart_view(restart: Restart, *, chosen: bool) -> RestartView:
    reason = restart.blocker or "loading its models would exceed the time budget"
    if chosen:
        reason = f"{restart.cycles} loads and unloads have fragmented its memory"
    return RestartView(
        node=restart.node,
        harness=restart.harness,
        cycles=restart.cycles,
        models=tuple(i.model for i in restart.instances),
        in_flight=restart.in_flight,
        interruption_s=restart.seconds,
        chosen=chosen,
        reason=reason,
    )


def _view(
    plan: DefragPlan | None, cluster: ClusterState, wanted_mb: int | None, *, cross_node: bool
) -> DefragView:
    if plan is None:
        size = f"a block of {wanted_mb} MiB" if wanted_mb else "a larger block"
        scope = (
            "" if cross_node else " on one node; --cross-node also considers moves between nodes"
        )
        return DefragView(reason=f"no moves within the budget create {size}{scope}")
    if not plan.moves:
        return DefragView(
            node=plan.node,
            device=plan.device,
            before_mb=plan.before_mb,
            after_mb=plan.after_mb,
            reason="such a block exists already",
        )
    change_mb: dict[tuple[str, int], int] = {}
    for m in plan.moves:
        change_mb[m.node, m.device] = change_mb.get((m.node, m.device), 0) + m.mb
        change_mb[m.to_node, m.to_device] = change_mb.get((m.to_node, m.to_device), 0) - m.mb
    affected = {node for node, _ in change_mb}
    devices = tuple(
        DeviceCapacityView(
            node=capacity.node.name,
            device=d.index,
            total_mb=d.total_mb,
            before_mb=d.available_mb,
            after_mb=d.available_mb + change_mb.get((capacity.node.name, d.index), 0),
        )
        for capacity in cluster.capacities
        if capacity.node.name in affected
        for d in capacity.devices
    )
    return DefragView(
        node=plan.node,
        device=plan.device,
        before_mb=plan.before_mb,
        after_mb=plan.after_mb,
        reason=f"{len(plan.moves)} moves create {plan.after_mb} MiB on {plan.node}/{plan.device}",
        moves=tuple(
            MoveView(
                instance=m.instance,
                model=m.model,
                node=m.node,
                device=m.device,
                to_node=m.to_node,
                to_device=m.to_device,
                mb=m.mb,
                load_s=m.seconds,
                in_flight=m.in_flight,
            )
            for m in plan.moves
        ),
        devices=devices,
    )


def _id(plan: DefragPlan | None, restarts: Sequence[Restart]) -> str:
    """Return an id of exactly these moves and restarts, unaffected by requests in flight."""
    parts: list[object] = []
    if plan is not None and plan.moves:
        parts += [plan.node, plan.device]
        parts += [(m.instance, m.to_node, m.to_device, m.mb) for m in plan.moves]
    parts += [(r.node, r.harness, r.cycles, *(i.id for i in r.instances)) for r in restarts]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
