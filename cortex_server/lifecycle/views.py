"""Plans, waits and the fleet as operators see them."""

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
from cortex_server.placement.fit import possible_shapes
from cortex_server.placement.plans import Impossible, Join, Load, Plan, Serve, Wait
from cortex_server.placement.policy import Policy
from cortex_server.placement.scheduler import Scheduler
from cortex_server.placement.state import ClusterState, PlacementRequest


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """The progress of a model that requests wait for.

    Attributes:
        state: waiting_for_capacity, evicting, starting or loading.
        node: the node that loads it.
        eta_s: seconds until ready, from past loads; None when unknown, or when it takes longer than those.
        position: queue position, 1 when no other model has waited longer; 0 when no request waits.
        started: the node is loading it.
        progress: share of the load that is done, 0 to 1, where the engine reports it.
        stage: what the engine reports to be doing.
        reason: what is waited for before the load can start, as text for people.
    """

    state: str
    node: str | None
    eta_s: float | None
    position: int
    started: bool
    progress: float | None = None
    stage: str | None = None
    reason: str | None = None


def wait_progress(
    model: str,
    scheduler: Scheduler,
    snapshot: FleetSnapshot,
    usual_s: float | None,
    now: float,
) -> WaitProgress | None:
    """Return the progress of a model that is queued or loading, here or through another gateway; None when neither.

    Args:
        model: the model's id.
        scheduler: the scheduler of this gateway.
        snapshot: the fleet now.
        usual_s: seconds that its loads took before.
        now: monotonic seconds.
    """
    position = scheduler.queues.position(model)
    load = next((u for u in scheduler.loads if u.key.model == model), None)
    views = [i for i in snapshot.instances() if i.model == model]
    if load is None:
        view = next((i for i in views if i.state is InstanceState.LOADING), None)
        if view is not None:
            return _progress_from_node("loading", view, view.eta_s, position)
        if not position:
            return None
        reason = scheduler.queues.wait_reason(model)
        return WaitProgress("waiting_for_capacity", None, None, position, False, reason=reason)
    remaining_s = usual_s - (now - load.stage_since) if usual_s is not None else 0.0
    eta_s = remaining_s if remaining_s > 0 else None
    view = next((i for i in views if i.id == load.order.instance), None)
    if view is not None:
        return _progress_from_node(
            load.stage.value, view, eta_s if view.eta_s is None else view.eta_s, position
        )
    return WaitProgress(load.stage.value, load.order.plan.node, eta_s, position, False)


def _progress_from_node(
    state: str, view: InstanceView, eta_s: float | None, position: int
) -> WaitProgress:
    return WaitProgress(state, view.node, eta_s, position, True, view.progress, view.stage)


def with_pins(snapshot: FleetSnapshot, pins: PinStore) -> FleetSnapshot:
    """Return the snapshot with operators' pins applied to its instances."""
    if not pins.active:
        return snapshot
    nodes = tuple(
        replace(
            node,
            instances=tuple(
                replace(i, pinned=True) if pins.is_pinned(i.model, i.node) else i
                for i in node.instances
            ),
        )
        for node in snapshot.nodes
    )
    return replace(snapshot, nodes=nodes)


def with_reasons(
    snapshot: FleetSnapshot,
    reasons: Mapping[InstanceId, str],
    model_configs: Mapping[str, ModelConfig],
    desired_state: DesiredState,
    failures: Mapping[str, FailureRecord],
    now: float,
) -> FleetSnapshot:
    """Return the snapshot with the reasons of placements and of failed loads, and with when idle models unload.

    Args:
        snapshot: the fleet, with pins applied.
        reasons: reasons of this gateway's loads, by instance.
        model_configs: model configs by model id.
        desired_state: decides when idle models unload.
        failures: the last failed load by model; where no engine was started, no instance shows it.
        now: monotonic seconds.
    """
    nodes = tuple(
        replace(
            node,
            instances=tuple(
                replace(i, reason=reasons[i.id]) if i.id in reasons else i for i in node.instances
            ),
        )
        for node in snapshot.nodes
    )
    by_model: dict[str, list[InstanceView]] = {}
    for i in snapshot.instances():
        by_model.setdefault(i.model, []).append(i)

    def annotate(model: ModelView) -> ModelView:
        if model.state is ModelState.UNLOADED and model.id in failures:
            return replace(model, state=ModelState.FAILED, error=failures[model.id].reason)
        model_config = model_configs.get(model.id)
        if model_config is None:
            return model
        seconds_left = desired_state.seconds_until_unload(
            model_config, by_model.get(model.id, ()), now
        )
        return (
            model if seconds_left is None else replace(model, unload_at=snapshot.at + seconds_left)
        )

    return replace(snapshot, nodes=nodes, models=tuple(map(annotate, snapshot.models)))


def plan_view(
    request: PlacementRequest,
    plan: Plan,
    cluster: ClusterState,
    policy: Policy,
    recent: Mapping[str, str],
) -> PlanView:
    """Return a plan as a view, with the reason for or against each device.

    Args:
        request: the model to be placed.
        plan: the decision.
        cluster: the cluster state that it was made on.
        policy: the operator's settings.
        recent: by node, what recently went wrong with the model there.
    """
    model = request.model_config.id
    ledger = _ledger(request, plan, cluster, policy, recent)
    match plan:
        case Serve(instances):
            reason = f"ready as {', '.join(instances)}"
            nodes = [
                r.node.name
                for r in cluster.capacities
                if {i.id for i in r.instances} & {*instances}
            ]
            return PlanView(
                model=model,
                action="serve",
                node=", ".join(nodes) or None,
                reason=reason,
                ledger=ledger,
            )
        case Join(node, _):
            reason = f"already loading on {node}"
            return PlanView(model=model, action="join", node=node, reason=reason, ledger=ledger)
        case Wait(_, reason):
            return PlanView(model=model, action="wait", reason=reason, ledger=ledger)
        case Impossible(no_node=no_node, cordoned=cordoned):
            reason = "no device can hold it"
            if no_node:
                reason = "no node that could serve it is reachable"
            if cordoned:
                reason = f"it fits only on nodes that are cordoned: {', '.join(cordoned)}"
            return PlanView(model=model, action="impossible", reason=reason, ledger=ledger)
        case Load():
            return PlanView(
                model=model,
                action="load",
                node=plan.node,
                devices=plan.devices,
                device_mb=plan.shape.size.device_mb or None,
                size_source=plan.shape.size.source.value,
                evictions=_evictions(plan, cluster),
                reason="; but ".join(filter(None, (plan.reason, recent.get(plan.node)))),
                ledger=ledger,
            )


def _evictions(load: Load, cluster: ClusterState) -> tuple[PlannedEviction, ...]:
    views = {i.id: i for capacity in cluster.capacities for i in capacity.instances}
    return tuple(eviction(views[i], cluster.now) for i in load.evictions)


def eviction(view: InstanceView, now: float) -> PlannedEviction:
    """Return what unloading an instance would free and disturb; `now` is Unix seconds."""
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
    plan: Plan,
    cluster: ClusterState,
    policy: Policy,
    recent: Mapping[str, str],
) -> tuple[LedgerLine, ...]:
    capacities = {capacity.node.name: capacity for capacity in cluster.capacities}
    model_shapes = possible_shapes(request.model_config, cluster.sizes)
    lines: list[LedgerLine] = []
    for refusal in refusals(
        request.model_config, request.constraints, model_shapes, cluster.capacities, policy
    ):
        devices = {d.index: d for d in capacities[refusal.node].devices}
        device = devices.get(refusal.device) if refusal.device is not None else None
        chosen = (
            isinstance(plan, Load) and refusal.node == plan.node and refusal.device in plan.devices
        )
        lines.append(
            LedgerLine(
                node=refusal.node,
                device=refusal.device,
                name=device.name if device else "",
                total_mb=device.total_mb if device else 0,
                available_mb=device.available_mb if device else 0,
                chosen=chosen,
                reason=None
                if chosen
                else "; ".join(filter(None, (refusal.reason, recent.get(refusal.node)))),
                missing_mb=refusal.missing_mb,
                reclaimable_mb=refusal.reclaimable_mb,
            )
        )
    return tuple(lines)
