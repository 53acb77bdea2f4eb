"""A plan as data for people: the same plan that would be carried out, with every device's ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, ModelState, ModelView
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_common.schema.plans import LedgerLine, PlannedEviction, PlanView
from cortex_server.lifecycle.pins import PinStore
from cortex_server.placement.desired_state import DesiredState
from cortex_server.placement.explain import refusals
from cortex_server.placement.failure_backoff import FailureRecord
from cortex_server.placement.fit import shapes
from cortex_server.placement.planner import Impossible, Join, Load, Plan, Serve, Wait
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState, PlacementRequest


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
    load = next((u for u in scheduler.loads if u.key.model == model), None)
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


def with_pins(snapshot: FleetSnapshot, pins: PinStore) -> FleetSnapshot:
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
    model_configs: Mapping[str, ModelConfig],
    upkeep: DesiredState,
    failures: Mapping[str, FailureRecord],
    now: float,
) -> FleetSnapshot:
    """The snapshot with why each instance is where it is, why models could not be loaded, and when idle ones go.

    Args:
        snapshot: with pins already.
        why: the reasons of this gateway's loads.
        model_configs: by model id.
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
        model_config = model_configs.get(model.id)
        if model_config is None:
            return model
        left = upkeep.ends_in(model_config, of_model.get(model.id, ()), now)
        return model if left is None else replace(model, unload_at=snapshot.at + left)

    return replace(snapshot, nodes=nodes, models=tuple(map(told, snapshot.models)))


def plan_view(
    request: PlacementRequest,
    found: Plan,
    cluster: ClusterState,
    policy: Policy,
    lately: Mapping[str, str],
) -> PlanView:
    """What would be done for a wish, and what speaks for or against each device.

    Args:
        request: for what.
        found: what was decided.
        cluster: that this was decided on.
        policy: the operator's choices.
        lately: by node, what went wrong with the model there.
    """
    model = request.model_config.id
    ledger = _ledger(request, found, cluster, policy, lately)
    match found:
        case Serve(instances):
            why = f"ready as {', '.join(instances)}"
            nodes = [
                r.node.name
                for r in cluster.capacities
                if {i.id for i in r.instances} & {*instances}
            ]
            return PlanView(
                model=model, action="serve", node=", ".join(nodes) or None, why=why, ledger=ledger
            )
        case Join(node, _):
            why = f"it is being loaded on {node}"
            return PlanView(model=model, action="join", node=node, why=why, ledger=ledger)
        case Wait(_, why):
            return PlanView(model=model, action="wait", why=why, ledger=ledger)
        case Impossible(no_node=no_node, cordoned=cordoned):
            why = "no device could hold it, however long one waited"
            if no_node:
                why = "no node that could serve it answers"
            if cordoned:
                why = f"it fits only on nodes that are cordoned: {', '.join(cordoned)}"
            return PlanView(model=model, action="impossible", why=why, ledger=ledger)
        case Load():
            return PlanView(
                model=model,
                action="load",
                node=found.node,
                devices=found.devices,
                device_mb=found.shape.size.device_mb or None,
                size_source=found.shape.size.source.value,
                evictions=_evictions(found, cluster),
                why="; but ".join(filter(None, (found.why, lately.get(found.node)))),
                ledger=ledger,
            )


def _evictions(found: Load, cluster: ClusterState) -> tuple[PlannedEviction, ...]:
    views = {i.id: i for capacity in cluster.capacities for i in capacity.instances}
    return tuple(eviction(views[i], cluster.now) for i in found.evictions)


def eviction(view: InstanceView, now: float) -> PlannedEviction:
    """What ending an instance would free and disturb; `now` is Unix seconds."""
    return PlannedEviction(
        instance=view.id,
        model=view.model,
        node=view.node,
        frees_mb=view.vram_used_mb,
        in_flight=view.in_flight,
        idle_s=round(max(0.0, now - view.last_used), 1),
    )


def _ledger(
    request: PlacementRequest,
    found: Plan,
    cluster: ClusterState,
    policy: Policy,
    lately: Mapping[str, str],
) -> tuple[LedgerLine, ...]:
    capacities = {capacity.node.name: capacity for capacity in cluster.capacities}
    layouts = shapes(request.model_config, cluster.sizes)
    lines: list[LedgerLine] = []
    for why in refusals(request.model_config, request.where, layouts, cluster.capacities, policy):
        devices = {d.index: d for d in capacities[why.node].devices}
        device = devices.get(why.device) if why.device is not None else None
        chosen = isinstance(found, Load) and why.node == found.node and why.device in found.devices
        lines.append(
            LedgerLine(
                node=why.node,
                device=why.device,
                name=device.name if device else "",
                total_mb=device.total_mb if device else 0,
                available_mb=device.available_mb if device else 0,
                chosen=chosen,
                reason=None
                if chosen
                else "; ".join(filter(None, (why.reason, lately.get(why.node)))),
                missing_mb=why.missing_mb,
                reclaimable_mb=why.reclaimable_mb,
            )
        )
    return tuple(lines)
