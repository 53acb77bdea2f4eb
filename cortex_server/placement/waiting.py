"""Whether memory for a model becomes available without an eviction: ending loads, drains, and nodes expected back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cortex_common.schema.fleet import InstanceView, NodeState
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_server.placement.capacity import NodeCapacity
from cortex_server.placement.eviction import DEFAULT_STATS
from cortex_server.placement.fit import Shape, device_sets, eligible_devices
from cortex_server.placement.plans import Wait
from cortex_server.placement.state import ClusterState, PlacementRequest


def wait_for_capacity(
    request: PlacementRequest,
    candidate_shapes: Sequence[Shape],
    capacities: Iterable[NodeCapacity],
    cluster: ClusterState,
) -> Wait | None:
    """Find memory that becomes available without an eviction: ending loads, drains, nodes expected back."""
    for capacity in cluster.capacities:
        allowed = request.constraints.node is None or capacity.node.name == request.constraints.node
        if (
            allowed
            and (reason := _expected_back(capacity, request.model_config.harness)) is not None
        ):
            return Wait((), reason)
    for capacity in capacities:
        if not capacity.in_transition and not capacity.reservations and not request.protected:
            continue
        holders = tuple(i.id for i in capacity.instances if _is_in_transition(i, capacity, request))
        obtainable = _obtainable_by_device(capacity, holders, request, cluster)
        for shape in candidate_shapes:
            devices = eligible_devices(request.model_config, capacity, shape, request.constraints)
            sufficient = tuple(
                d
                for d in devices
                if d.available_mb + obtainable.get(d.index, 0) >= shape.needed_mb(d)
            )
            sets = device_sets(sufficient, shape.devices, mixed=request.model_config.mixed_devices)
            if (holders or capacity.reservations) and next(sets, None) is not None:
                return Wait(holders, f"memory on {capacity.node.name} is in use or becoming free")
    return None


def _expected_back(capacity: NodeCapacity, harness: str) -> str | None:
    """Return why a node that is not up may be up again soon; None when it is up or not expected back."""
    node = capacity.node
    if node.state is NodeState.CONNECTING:
        return f"node {node.name} has not reported yet"
    if node.is_expected_back and harness in node.harnesses:
        return f"node {node.name} was up until a moment ago"
    return None


def _obtainable_by_device(
    capacity: NodeCapacity,
    holders: Sequence[InstanceId],
    request: PlacementRequest,
    cluster: ClusterState,
) -> Mapping[int, int]:
    """Return the MiB by device held by pending loads, by instances in transition, and by those evictable later."""
    obtainable: dict[int, int] = {}
    for reservation in capacity.reservations:
        for index in reservation.devices:
            obtainable[index] = obtainable.get(index, 0) + reservation.device_mb
    for i in capacity.instances:
        if i.id in holders or (request.may_evict and _is_evictable_later(i, request, cluster)):
            for index, mb in capacity.memory_of(i).items():
                obtainable[index] = obtainable.get(index, 0) + mb
    return obtainable


def _is_in_transition(
    instance: InstanceView, capacity: NodeCapacity, request: PlacementRequest
) -> bool:
    """Return whether an instance's memory may become free or evictable without a decision now."""
    if not request.may_evict:
        return instance.state in {InstanceState.DRAINING, InstanceState.STOPPING}
    return instance.id in capacity.in_transition or (
        instance.id in request.protected and not instance.pinned
    )


def _is_evictable_later(
    instance: InstanceView, request: PlacementRequest, cluster: ClusterState
) -> bool:
    """Return whether the instance may be evicted once it is idle and its residency is over."""
    stats = cluster.stats.get(instance.model, DEFAULT_STATS)
    return (
        not instance.pinned and instance.model != request.model_config.id and not stats.min_replicas
    )
