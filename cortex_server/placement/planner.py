"""Decides what to do for a model: serve, join a pending load, load, wait, or report why nothing can be done.

`plan` is deterministic. In order of preference: a ready instance; a pending load; a load without eviction; the cheapest
eviction; waiting for memory that busy or recently loaded instances hold; impossible.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from operator import neg

from cortex_common.schema.fleet import NodeState, NodeView
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import (
    DeviceCapacity,
    NodeCapacity,
    is_serving,
)
from cortex_server.placement.eviction_candidates import (
    EvictionPlace,
    EvictionRules,
    EvictionTier,
    cheapest_place,
)
from cortex_server.placement.explain import refusals
from cortex_server.placement.failure_backoff import FailureBackoff
from cortex_server.placement.fit import (
    PlacementConstraints,
    Shape,
    find_free_devices,
    node_refusal,
    possible_shapes,
)
from cortex_server.placement.plans import Impossible, Join, Load, Plan, Serve, Wait
from cortex_server.placement.policy import Policy, Prefer
from cortex_server.placement.state import ClusterState, PlacementRequest
from cortex_server.placement.topology import describe_links
from cortex_server.placement.waiting import wait_for_capacity

MAX_REFUSALS = 64
"""Limit on the refusals that an impossible plan carries."""


def plan(request: PlacementRequest, cluster: ClusterState, policy: Policy) -> Plan:
    """Decide what to do for a request, disregarding past failures; see the module docstring for the preferences."""
    model = ModelId(request.model_config.id)
    if (
        not request.replica
        and (existing := find_existing(model, request.constraints, cluster)) is not None
    ):
        return existing
    if (pending_node := _unreported_node(request, cluster)) is not None:
        return Wait((), f"node {pending_node} has not reported yet and may have the model")
    capacities = _eligible_nodes(request, cluster.capacities, policy)
    candidate_shapes = possible_shapes(request.model_config, cluster.sizes, request.floors)
    if (load := _place_now(request, candidate_shapes, capacities, cluster, policy)) is not None:
        return load
    if (
        request.may_evict
        and (
            plan_with_eviction := _place_with_eviction(
                request, candidate_shapes, capacities, cluster, policy
            )
        )
        is not None
    ):
        return plan_with_eviction
    if (wait := wait_for_capacity(request, candidate_shapes, capacities, cluster)) is not None:
        return wait
    any_up = any(capacity.node.state is NodeState.UP for capacity in cluster.capacities)
    all_refusals = refusals(
        request.model_config, request.constraints, candidate_shapes, cluster.capacities, policy
    )
    blocked = _blocked_nodes(request, cluster, policy)
    return Impossible(
        tuple(islice(all_refusals, MAX_REFUSALS)),
        no_node=not any_up or not all(node.cordoned for node in blocked),
        cordoned=tuple(node.name for node in blocked if node.cordoned),
    )


def _blocked_nodes(
    request: PlacementRequest, cluster: ClusterState, policy: Policy
) -> list[NodeView]:
    """Return the nodes that could load the model, now or later, if they were not cordoned and were up.

    A node that has never been up has not reported its harnesses, so it counts as able.
    """
    new_instance = replace(request, replica=True)
    blocked = []
    for capacity in cluster.capacities:
        node = capacity.node
        if node.cordoned or node.state is NodeState.UNREACHABLE:
            usable = replace(capacity, node=replace(node, cordoned=False, state=NodeState.UP))
            only_this = replace(cluster, capacities=(usable,))
            has_reported = node.state is NodeState.UP or node.harnesses or node.upstream
            may_serve = not has_reported and _is_allowed_node(request, node)
            if may_serve or not isinstance(plan(new_instance, only_this, policy), Impossible):
                blocked.append(node)
    return blocked


def _eligible_nodes(
    request: PlacementRequest, capacities: Iterable[NodeCapacity], policy: Policy
) -> list[NodeCapacity]:
    """Return the nodes whose devices are to be considered."""
    model_config, constraints, excluded, labels = (
        request.model_config,
        request.constraints,
        request.excluded_nodes,
        policy.labels,
    )
    harness = model_config.harness
    eligible = [capacity for capacity in capacities if harness in capacity.usable_harnesses]
    if excluded:
        eligible = [capacity for capacity in eligible if capacity.node.name not in excluded]
    if constraints.node is None and not model_config.nodes and not model_config.labels:
        return eligible
    return [
        capacity
        for capacity in eligible
        if node_refusal(model_config, capacity.node, constraints, labels.get(capacity.node.name))
        is None
    ]


def find_existing(
    model: ModelId, constraints: PlacementConstraints, cluster: ClusterState
) -> Serve | Join | None:
    """Return the model's ready instances, or else a pending load of it."""
    ready: list[InstanceId] = []
    loading: Join | None = None
    for capacity in cluster.capacities:
        if constraints.node is not None and capacity.node.name != constraints.node:
            continue
        if model in capacity.models:
            for i in capacity.instances:
                if i.model != model or (
                    constraints.devices and set(i.devices) != set(constraints.devices)
                ):
                    continue
                if is_serving(capacity, i):
                    ready.append(i.id)
                elif i.state is InstanceState.LOADING and capacity.node.state is NodeState.UP:
                    loading = loading or Join(capacity.node.name, i.id)
        if capacity.reservations and any(p.model == model for p in capacity.reservations):
            loading = loading or Join(capacity.node.name, None)
    return Serve(tuple(ready)) if ready else loading


def _unreported_node(request: PlacementRequest, cluster: ClusterState) -> str | None:
    """Return a node that may hold the model but has not reported since it was added, or since the gateway started."""
    for capacity in cluster.capacities:
        if capacity.node.state is NodeState.CONNECTING and _is_allowed_node(request, capacity.node):
            return capacity.node.name
    return None


def _absent_holder(request: PlacementRequest, cluster: ClusterState) -> str | None:
    """Return a node that had the model and is expected back; nothing is evicted for the model until then."""
    if request.replica:
        return None
    for capacity in cluster.capacities:
        if (
            capacity.node.is_expected_back
            and request.model_config.id in capacity.models
            and request.constraints.node in {None, capacity.node.name}
        ):
            return capacity.node.name
    return None


def _is_allowed_node(request: PlacementRequest, node: NodeView) -> bool:
    """Return whether the request and the model config allow the node by name."""
    return request.constraints.node in {None, node.name} and node.name in (
        request.model_config.nodes or {node.name}
    )


def _place_now(
    request: PlacementRequest,
    candidate_shapes: Sequence[Shape],
    capacities: Sequence[NodeCapacity],
    cluster: ClusterState,
    policy: Policy,
) -> Load | None:
    """Find a place in available memory; before the CPU is used, idle instances are evicted from GPUs."""
    on_gpu = [shape for shape in candidate_shapes if shape.kind is DeviceKind.CUDA]
    on_cpu = [shape for shape in candidate_shapes if shape.kind is DeviceKind.CPU]
    for shape in on_gpu:
        load = _place_without_eviction(request, shape, capacities, cluster, policy)
        if load is not None:
            return load
    may_evict = request.may_evict and _absent_holder(request, cluster) is None
    if policy.prefer_gpu and may_evict and on_cpu:
        rules = EvictionRules(cluster, policy, request, EvictionTier.IDLE)
        for shape in on_gpu:
            if (place := cheapest_place(shape, capacities, rules)) is not None:
                reason = (
                    f"cheapest eviction of idle instances ({policy.strategy}), preferred to the CPU"
                )
                return _load_after_evictions(place, reason)
    for shape in on_cpu:
        load = _place_without_eviction(request, shape, capacities, cluster, policy)
        if load is not None:
            return load
    return None


def _place_without_eviction(
    request: PlacementRequest,
    shape: Shape,
    capacities: Iterable[NodeCapacity],
    cluster: ClusterState,
    policy: Policy,
) -> Load | None:
    """Find a place for the shape in available memory: nodes with the weights first, then by policy."""
    least_mb, count, kind = shape.least_mb, shape.devices, shape.kind
    with_weights = cluster.nodes_with_weights.get(ModelId(request.model_config.id), frozenset())
    spread = policy.prefer is Prefer.SPREAD or not least_mb
    best: tuple[bool, int, NodeCapacity, tuple[DeviceCapacity, ...]] | None = None
    for capacity in capacities:
        available = capacity.available.get(kind, ())
        enough_mb = least_mb - capacity.headroom_mb
        if len(available) < count or available[count - 1] < enough_mb:
            continue
        if best is not None:
            best_case = (
                -sum(available[:count])
                if spread
                else _tightest_available(available, count, enough_mb)
            )
            if (capacity.node.name not in with_weights, best_case) >= best[:2]:
                continue
        devices = find_free_devices(
            request.model_config, capacity, shape, request.constraints, policy.prefer
        )
        if devices is None:
            continue
        total = sum(d.available_mb for d in devices)
        key = (capacity.node.name not in with_weights, -total if spread else total)
        if best is None or key < best[:2]:
            best = (*key, capacity, devices)
    if best is None:
        return None
    lacks_weights, _, capacity, devices = best
    preference = "most available memory" if spread else "least sufficient memory"
    if not least_mb:
        preference += ", because its size is unknown before its first load"
    reason = (
        preference if lacks_weights else f"its weights are on this node's disk; {preference} there"
    )
    if (links := describe_links(devices)) is not None:
        reason += f"; {links}"
    indices = tuple(sorted(d.index for d in devices))
    offered = {d.index: d.available_mb for d in devices}
    card = devices[0].name
    return Load(capacity.node.name, indices, shape.on(devices), (), reason, card, offered)


def _tightest_available(available: Sequence[int], count: int, needed_mb: int) -> int:
    """Return the sum of the `count` smallest amounts that suffice; `available` is sorted largest first."""
    end = bisect_right(available, -needed_mb, key=neg)
    return sum(available[end - count : end])


def _place_with_eviction(
    request: PlacementRequest,
    candidate_shapes: Sequence[Shape],
    capacities: Sequence[NodeCapacity],
    cluster: ClusterState,
    policy: Policy,
) -> Load | Wait | None:
    """Find the cheapest eviction.

    Wait while only recent or busy instances could be evicted and patience lasts, and for a node that has the model and
    is expected back.
    """
    if (holder := _absent_holder(request, cluster)) is not None:
        return Wait((), f"node {holder}, which has it loaded, was up until a moment ago")
    patience_s = policy.patience_s
    recent_patience_s = patience_s + policy.min_residency_s
    tiers = (
        (EvictionTier.IDLE, "idle", 0.0),
        (EvictionTier.IDLE_RECENT, "recently loaded", patience_s),
        (EvictionTier.BUSY, "busy", patience_s),
        (EvictionTier.BUSY_RECENT, "busy, recently loaded", recent_patience_s),
    )
    for tier, description, min_wait_s in tiers:
        rules = EvictionRules(cluster, policy, request, tier)
        for shape in candidate_shapes:
            place = cheapest_place(shape, capacities, rules)
            if place is None:
                continue
            evictions = tuple(v.id for v in place.choice.candidates)
            if request.waited_s < min_wait_s:
                return Wait(
                    evictions,
                    f"memory is held by {description} instances on {place.capacity.node.name}",
                )
            return _load_after_evictions(
                place, f"cheapest eviction of {description} instances ({policy.strategy})"
            )
    return None


def _load_after_evictions(place: EvictionPlace, why: str) -> Load:
    candidates, devices = place.choice.candidates, place.devices
    return Load(
        place.capacity.node.name,
        tuple(sorted(d.index for d in devices)),
        place.shape.on(devices),
        tuple(v.id for v in candidates),
        why,
        devices[0].name,
        {
            d.index: d.available_mb + sum(v.freed_mb.get(d.index, 0) for v in candidates)
            for d in devices
        },
    )


def plan_with_failures(
    request: PlacementRequest,
    cluster: ClusterState,
    policy: Policy,
    failures: FailureBackoff,
    now: float,
    *,
    forgiven: bool = False,
) -> Plan:
    """Decide what to do for a request, taking recent failures into account.

    Args:
        request: the model to be placed.
        cluster: the state of the cluster, pending decisions included.
        policy: the operator's settings.
        failures: recent failures.
        now: monotonic seconds.
        forgiven: disregard failures of engines, because an operator requested the load.
    """
    model = request.model_config.id
    excluded = request.excluded_nodes.union(failures.refusing_nodes(model, now))
    protected = frozenset(i for i, until in failures.undrainable.items() if now < until)
    request = replace(request, protected=protected, excluded_nodes=excluded)
    if forgiven:
        return plan(request, cluster, policy)
    request = replace(
        request,
        excluded_nodes=excluded.union(failures.unable_nodes(model, now)),
        floors=failures.floors(model),
    )
    decision = plan(request, cluster, policy)
    crashed_nodes = failures.crashed_nodes(model, now)
    if not isinstance(decision, Load) or decision.node not in crashed_nodes:
        return decision
    # Try another node where no eviction is needed if an engine crashed there: the fault may be the host's.
    alternative = plan(
        replace(request, excluded_nodes=request.excluded_nodes | crashed_nodes, may_evict=False),
        cluster,
        policy,
    )
    return alternative if isinstance(alternative, Load) else decision


def dry_run(
    request: PlacementRequest,
    cluster: ClusterState,
    policy: Policy,
    failures: FailureBackoff,
    now: float,
    *,
    force: bool = False,
) -> Plan:
    """Return what would be done for a request that arrived now; `force` as in `LoadRequest.force`."""
    model = request.model_config.id
    failure = None if force else failures.active_failure(model, now)
    if failure is not None:
        return Wait((), f"its last load failed: {failure.reason}")
    decision = plan_with_failures(request, cluster, policy, failures, now, forgiven=force)
    if isinstance(decision, Impossible) and (refusing := failures.refusing_nodes(model, now)):
        nodes = ", ".join(sorted(refusing))
        return Wait((), f"{nodes} recently refused or lost it and will be retried soon")
    return decision
