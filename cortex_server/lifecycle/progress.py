"""How far the model is that somebody waits for."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceState
from cortex_server.placement.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """How far the model that somebody waits for is.

    Attributes:
        state: waiting_for_room, making_room, starting or loading.
        node: where it is being loaded.
        eta_s: seconds until ready, from past loads; None when nothing is known, or it takes longer than those.
        position: 1 when no other model's requests wait longer; 0 when nobody waits.
        started: the node is loading it.
        progress: share of the load that is done, 0 to 1, where the engine tells.
        stage: what the engine says that it is doing.
        why: what is waited for before a load can begin, for people.
    """

    state: str
    node: str | None
    eta_s: float | None
    position: int
    started: bool
    progress: float | None = None
    stage: str | None = None
    why: str | None = None


def progress_of(
    model: str,
    scheduler: Scheduler,
    snapshot: FleetSnapshot,
    usual_s: float | None,
    now: float,
) -> WaitProgress | None:
    """What is known about a model that is waited for or loaded, here or by another gateway; None when neither.

    Args:
        model: its id.
        scheduler: of this gateway.
        snapshot: the fleet now.
        usual_s: seconds that its load took before.
        now: monotonic seconds.
    """
    position = scheduler.waiting.position(model)
    load = next((u for u in scheduler.loads if u.goal.model == model), None)
    views = [i for i in snapshot.instances() if i.model == model]
    if load is None:
        view = next((i for i in views if i.state is InstanceState.LOADING), None)
        if view is not None:
            return _seen("loading", view, view.eta_s, position)
        if not position:
            return None
        why = scheduler.waiting.why(model)
        return WaitProgress("waiting_for_room", None, None, position, False, why=why)
    left = usual_s - (now - load.since) if usual_s is not None else 0.0
    known = left if left > 0 else None
    view = next((i for i in views if i.id == load.order.instance), None)
    if view is not None:
        return _seen(load.stage.value, view, known if view.eta_s is None else view.eta_s, position)
    return WaitProgress(load.stage.value, load.order.plan.node, known, position, False)


def _seen(state: str, view: InstanceView, eta_s: float | None, position: int) -> WaitProgress:
    return WaitProgress(state, view.node, eta_s, position, True, view.progress, view.stage)
