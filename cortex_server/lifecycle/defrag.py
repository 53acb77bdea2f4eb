"""Defragmentation as operators see it: a plan with an id, and the same plan carried out."""

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
from cortex_server.placement.defrag import Budget, Defrag, Move, defrag
from cortex_server.placement.engine_restarts import Restart, affordable
from cortex_server.placement.fit import PlacementConstraints, shapes
from cortex_server.placement.load_queue import LoadKey
from cortex_server.placement.state import ClusterState

log = logging.getLogger("cortex.operator")


class DefragRunner:
    """See the module.

    Args:
        fleet: the live state.
        conductor: who loads and unloads.
        restarts: who restarts engines of somebody else.
        clock: for how long it took.
        profile_of: finds the profile behind a name.
        check_node: refuses a node that nothing is moved on.
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
        self._profile_of = profile_of
        self._check_node = check_node

    def plan(self, request: DefragRequest) -> DefragView:
        """Moves and restarts for a wish.

        Raises:
            ModelNotFound: the wish names a model without a profile.
            NodeNotFound: it names a node that is not there.
            NotSupported: the model stands on several devices.
        """
        return self._planned(request).view

    async def apply(self, request: ApplyDefragRequest) -> DefragView:
        """Carry out exactly what was shown, one after the other: copy, shift, drain, unload; and the restarts last.

        Raises:
            Conflict: the same request gives another plan now.
            CortexError: a copy could not be loaded, an original not be drained or an engine not be restarted; what came
                before stays done.
        """
        planned = self._planned(request.request)
        view = planned.view
        if not view.plan or view.plan != request.plan:
            raise Conflict(
                "the fleet has changed since that plan was made",
                hints=("plan it again, and look at what it shows",),
                details={"plan": view.plan},
            )
        began = self._clock.monotonic()
        for move in planned.moves:
            await self._make(move, request.drain_timeout_s)
        for restart in planned.restarts:
            await self._restarts.make(restart, request.drain_timeout_s)
        seconds = self._clock.monotonic() - began
        return view.model_copy(update={"done": True, "seconds": seconds})

    async def _make(self, move: Move, drain_s: float) -> None:
        event(log, "moving", model=move.model, instance=move.instance, to=move.to_node)
        where = PlacementConstraints(move.to_node, (move.to_device,))
        key = LoadKey(move.model, where, replica=True, may_evict=False)
        model_config = self._profile_of(move.model)
        await self._controller.want(model_config, key, timeout_s=max(60.0, move.seconds * 5))
        views = [i for i in self._fleet.snapshot.instances() if i.id == move.instance]
        await self._controller.unload(move.model, views, drain_s, whole=False, why="defrag")

    def _planned(self, request: DefragRequest) -> _Planned:
        cluster = self._controller.advice.cluster()
        if request.node is not None:
            self._check_node(request.node)
        wanted = None
        if request.model is not None:
            layout = shapes(self._profile_of(request.model), cluster.sizes)[0]
            if layout.devices > 1:
                raise NotSupported(
                    f"{request.model} stands on {layout.devices} devices; blocks are made on one",
                    hints=("cortex plan load shows what would be evicted for it",),
                )
            wanted = layout.size.device_mb
        budget = Budget(request.max_moves, request.max_seconds, request.cross_node)
        found = defrag(
            cluster.capacities, cluster.stats, budget, wanted_mb=wanted, only=request.node
        )
        moves = found.moves if found is not None else ()
        due = [
            r
            for r in self._restarts.due()
            if request.model is None and request.node in {None, r.node}
        ]
        restarts = affordable(due, request.max_seconds - sum(m.seconds for m in moves))
        view = _view(found, cluster, wanted, cross_node=request.cross_node).model_copy(
            update={
                "plan": _id(found, restarts) if moves or restarts else "",
                "restarts": tuple(_restart_view(r, chosen=r in restarts) for r in due),
            }
        )
        return _Planned(moves, restarts, view)


@dataclass(frozen=True, slots=True)
class _Planned:
    """What would be done, and the same for people."""

    moves: tuple[Move, ...]
    restarts: tuple[Restart, ...]
    view: DefragView


def _restart_view(restart: Restart, *, chosen: bool) -> RestartView:
    why = restart.hindrance or "its models load for longer than there is time for"
    if chosen:
        why = f"{restart.cycles} loads and unloads have scattered its memory"
    return RestartView(
        node=restart.node,
        harness=restart.harness,
        cycles=restart.cycles,
        models=tuple(i.model for i in restart.instances),
        in_flight=restart.in_flight,
        interruption_s=restart.seconds,
        chosen=chosen,
        why=why,
    )


def _view(
    found: Defrag | None, cluster: ClusterState, wanted_mb: int | None, *, cross_node: bool
) -> DefragView:
    if found is None:
        size = f"a block of {wanted_mb} MiB" if wanted_mb else "a larger block"
        where = "" if cross_node else " on one node; --cross-node considers all nodes"
        return DefragView(why=f"no moves within the budget make {size}{where}")
    if not found.moves:
        return DefragView(
            node=found.node,
            device=found.device,
            before_mb=found.before_mb,
            after_mb=found.after_mb,
            why="there is such a block already",
        )
    gain: dict[tuple[str, int], int] = {}
    for m in found.moves:
        gain[m.node, m.device] = gain.get((m.node, m.device), 0) + m.mb
        gain[m.to_node, m.to_device] = gain.get((m.to_node, m.to_device), 0) - m.mb
    names = {node for node, _ in gain}
    devices = tuple(
        DeviceCapacityView(
            node=capacity.node.name,
            device=d.index,
            total_mb=d.total_mb,
            before_mb=d.available_mb,
            after_mb=d.available_mb + gain.get((capacity.node.name, d.index), 0),
        )
        for capacity in cluster.capacities
        if capacity.node.name in names
        for d in capacity.devices
    )
    return DefragView(
        node=found.node,
        device=found.device,
        before_mb=found.before_mb,
        after_mb=found.after_mb,
        why=f"{len(found.moves)} moved to make {found.after_mb} MiB on {found.node}/{found.device}",
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
            for m in found.moves
        ),
        devices=devices,
    )


def _id(found: Defrag | None, restarts: Sequence[Restart]) -> str:
    """Names exactly these moves and restarts; requests that come and go do not change it."""
    told: list[object] = []
    if found is not None and found.moves:
        told += [found.node, found.device]
        told += [(m.instance, m.to_node, m.to_device, m.mb) for m in found.moves]
    told += [(r.node, r.harness, r.cycles, *(i.id for i in r.instances)) for r in restarts]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
