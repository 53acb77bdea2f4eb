from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_states import (
    NOW,
    cluster,
    clusters,
    device,
    instance,
    model_config,
    model_configs,
    node,
)

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.hardware import DeviceHealth, DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId
from cortex_server.placement.capacity import (
    CapacityCache,
    memory_by_device,
    node_capacity,
)
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.fit import (
    PlacementConstraints,
    Size,
    SizeSource,
    device_refusal,
    node_refusal,
    possible_shapes,
    size_key,
)
from cortex_server.placement.overlay import EMPTY_OVERLAY, Overlay, Reservation
from cortex_server.placement.planner import plan
from cortex_server.placement.plans import Impossible, Join, Load, Serve, Wait
from cortex_server.placement.policy import Policy, Prefer, Strategy
from cortex_server.placement.state import ClusterState, PlacementRequest

LRU = Policy()
PATIENCE_OVER = 1e9

requests = st.builds(
    PlacementRequest,
    model_config=model_configs(),
    waited_s=st.sampled_from([0.0, PATIENCE_OVER]),
    may_evict=st.booleans(),
)
policies = st.builds(Policy, strategy=st.sampled_from(Strategy), prefer=st.sampled_from(Prefer))


def after(found: Load, request: PlacementRequest, before: ClusterState) -> ClusterState:
    """Return the cluster state once a plan is decided: evictions draining, memory reserved."""
    reservation = Reservation(
        InstanceId("new"),
        ModelId(request.model_config.id),
        found.node,
        found.devices,
        found.shape.size.device_mb,
        found.evictions,
    )
    others = tuple(p for r in before.capacities for p in r.reservations)
    overlay = Overlay(reservations=(*others, reservation), draining=frozenset(found.evictions))
    snapshot = FleetSnapshot(2, NOW, tuple(r.node for r in before.capacities))
    return replace(before, capacities=CapacityCache().capacities(snapshot, overlay))


@given(requests, clusters(), policies)
def test_a_load_never_exceeds_the_memory(
    request: PlacementRequest, before: ClusterState, policy: Policy
) -> None:
    """On each device of a planned load, available memory plus evictions covers its share."""
    found = plan(request, before, policy)
    if isinstance(found, Load):
        capacity = next(r for r in before.capacities if r.node.name == found.node)
        candidates = [i for i in capacity.instances if i.id in found.evictions]
        assert len(candidates) == len(found.evictions)
        assert len(set(found.devices)) == found.shape.devices
        for d in capacity.devices:
            if d.index in found.devices:
                freed = sum(memory_by_device(v).get(d.index, 0) for v in candidates)
                assert d.available_mb + freed >= found.shape.size.device_mb
                assert device_refusal(request.model_config, d, request.constraints) is None
        assert node_refusal(request.model_config, capacity.node) is None


@given(requests, clusters(), policies)
def test_only_evictable_instances_are_evicted(
    request: PlacementRequest, before: ClusterState, policy: Policy
) -> None:
    """No pinned, loading or required instance is evicted, and no busy one before patience ends."""
    found = plan(request, before, policy)
    if isinstance(found, Load) and found.evictions:
        assert request.may_evict
        instances = {i.id: i for r in before.capacities for i in r.instances}
        for gone in found.evictions:
            candidate = instances[gone]
            assert not candidate.pinned
            assert candidate.state is InstanceState.READY
            assert request.waited_s or not candidate.in_flight
            keep = before.stats[candidate.model].min_replicas
            stays = [
                i
                for r in before.capacities
                for i in r.instances
                if r.node.state is NodeState.UP
                and i.model == candidate.model
                and i.state is InstanceState.READY
                and i.id not in found.evictions
            ]
            assert len(stays) >= keep


@given(requests, clusters(), policies)
def test_the_same_inputs_give_the_same_plan(
    request: PlacementRequest, before: ClusterState, policy: Policy
) -> None:
    """A plan depends on nothing but its inputs."""
    assert plan(request, before, policy) == plan(request, before, policy)


@given(requests, clusters(), policies)
def test_planning_again_joins_the_decided_load(
    request: PlacementRequest, before: ClusterState, policy: Policy
) -> None:
    """Once a load is decided, planning again joins it, wherever it is and whatever it evicts."""
    found = plan(request, before, policy)
    if isinstance(found, Load):
        again = plan(request, after(found, request, before), policy)
        assert again == Join(found.node, None)


@given(requests, model_configs(), clusters(), policies)
def test_two_plans_do_not_use_the_same_memory(
    request: PlacementRequest, other: ModelConfig, before: ClusterState, policy: Policy
) -> None:
    """A load planned while another's evictions are draining does not use the memory that they free."""
    first = plan(request, before, policy)
    if not isinstance(first, Load):
        return
    second_wish = PlacementRequest(other.model_copy(update={"id": "g"}), waited_s=PATIENCE_OVER)
    second = plan(second_wish, after(first, request, before), policy)
    if not isinstance(second, Load):
        return
    assert not set(first.evictions) & set(second.evictions)
    for capacity in before.capacities:
        instances = {i.id: i for i in capacity.instances}
        for d in capacity.devices:
            left = d.available_mb
            for found in (
                second,
                first,
            ):  # the second may be carried out before the first has its room
                if capacity.node.name == found.node:
                    left += sum(
                        memory_by_device(instances[v]).get(d.index, 0) for v in found.evictions
                    )
                    left -= found.shape.size.device_mb if d.index in found.devices else 0
                    assert left >= 0


@given(requests, clusters(), policies)
def test_nothing_is_evicted_while_memory_suffices(
    request: PlacementRequest, before: ClusterState, policy: Policy
) -> None:
    """An eviction is planned only when no shape fits as things are."""
    found = plan(request, before, policy)
    if isinstance(found, Load) and found.evictions:
        assert not isinstance(plan(replace(request, may_evict=False), before, policy), Load)


@given(model_configs(), clusters(), policies)
def test_impossible_means_that_waiting_would_not_help(
    wanted: ModelConfig, before: ClusterState, policy: Policy
) -> None:
    """An impossible model would not fit even with every evictable instance gone."""
    found = plan(PlacementRequest(wanted, waited_s=PATIENCE_OVER), before, policy)
    if not isinstance(found, Impossible):
        return
    for capacity in before.capacities:
        if node_refusal(wanted, capacity.node) is not None:
            continue
        movable = [
            i for i in capacity.instances if not i.pinned and not before.stats[i.model].min_replicas
        ]
        for shape in possible_shapes(wanted, {}):
            able: dict[str, int] = {}
            for d in capacity.devices:
                freed = sum(memory_by_device(i).get(d.index, 0) for i in movable)
                freed += sum(p.device_mb for p in capacity.reservations if d.index in p.devices)
                roomy = d.available_mb + freed >= shape.size.device_mb
                if (
                    roomy
                    and d.kind is shape.kind
                    and not device_refusal(wanted, d, PlacementConstraints())
                ):
                    group = "" if wanted.mixed_devices else d.name
                    able[group] = able.get(group, 0) + 1
            assert all(count < shape.devices for count in able.values())


@given(clusters())
def test_cached_capacities_equal_fresh_ones(before: ClusterState) -> None:
    """`CapacityCache` returns what it would build from scratch."""
    capacities = CapacityCache()
    snapshot = FleetSnapshot(1, NOW, tuple(r.node for r in before.capacities))
    assert (
        capacities.capacities(snapshot)
        == capacities.capacities(snapshot)
        == tuple(node_capacity(n) for n in snapshot.nodes)
    )
    gone = frozenset(i.id for i in snapshot.instances())
    emptied = capacities.capacities(snapshot, Overlay(removed=gone))
    assert all(not capacity.instances for capacity in emptied)
    assert capacities.capacities(snapshot, EMPTY_OVERLAY) == tuple(
        node_capacity(n) for n in snapshot.nodes
    )


# -- preferences ------------------------------------------------------------------------------------


def test_a_ready_instance_is_served() -> None:
    """A model that is ready is not loaded again."""
    a = instance("a")
    assert plan(
        PlacementRequest(model_config("a")), cluster(node("n1", (device(0),), (a,))), LRU
    ) == Serve((a.id,))


def test_an_instance_on_an_unreachable_node_does_not_count() -> None:
    """Another node loads the model."""
    lost = node("n1", (device(0),), (instance("a"),), state=NodeState.UNREACHABLE)
    found = plan(PlacementRequest(model_config("a")), cluster(lost, node("n2", (device(0),))), LRU)
    assert isinstance(found, Load)
    assert found.node == "n2"


def test_a_pending_load_is_joined() -> None:
    """A model that another gateway loads is waited for."""
    a = instance("a", state=InstanceState.LOADING)
    found = plan(PlacementRequest(model_config("a")), cluster(node("n1", (device(0),), (a,))), LRU)
    assert found == Join("n1", a.id)


def test_packing_keeps_the_largest_block_whole() -> None:
    """`pack` takes the device with the least sufficient memory."""
    n1 = node("n1", (device(0, 1000), device(1, 300)))
    found = plan(
        PlacementRequest(model_config("a", 200)), cluster(n1, node("n2", (device(0, 400),))), LRU
    )
    assert isinstance(found, Load)
    assert (found.node, found.devices) == ("n1", (1,))


def test_spreading_takes_the_emptiest_device() -> None:
    """`spread` takes the device with the most available memory."""
    n1 = node("n1", (device(0, 1000), device(1, 300)))
    policy = Policy(prefer=Prefer.SPREAD)
    found = plan(
        PlacementRequest(model_config("a", 200)), cluster(n1, node("n2", (device(0, 400),))), policy
    )
    assert isinstance(found, Load)
    assert (found.node, found.devices) == ("n1", (0,))


def test_weights_on_disk_outweigh_a_tighter_fit() -> None:
    """Of nodes with enough memory, one that has loaded the model before comes first."""
    here = cluster(
        node("n1", (device(0, 200),)),
        node("n2", (device(0, 1000),)),
        nodes_with_weights={ModelId("a"): frozenset({"n2"})},
    )
    found = plan(PlacementRequest(model_config("a", 200)), here, LRU)
    assert isinstance(found, Load)
    assert found.node == "n2"


def test_a_gpu_comes_before_a_cpu() -> None:
    """A CPU device is used only where no GPU has enough memory."""
    cpu = device(1, 200, kind=DeviceKind.CPU, name="cpu")
    fleet = cluster(node("n1", (cpu, device(0, 1000))))
    found = plan(PlacementRequest(model_config("a", 200)), fleet, LRU)
    assert isinstance(found, Load)
    assert found.devices == (0,)
    full = cluster(node("n1", (cpu, device(0, 100))))
    found = plan(PlacementRequest(model_config("a", 200)), full, LRU)
    assert isinstance(found, Load)
    assert found.devices == (1,)


def test_a_measured_size_beats_the_configured_one() -> None:
    """The measured size is used, whatever the model config says."""
    wanted = model_config("a", 900)
    sizes = {size_key(wanted, DeviceKind.CUDA, 1): {"H200": Size(300, SizeSource.MEASURED)}}
    found = plan(PlacementRequest(wanted), cluster(node("n1", (device(0, 400),)), sizes=sizes), LRU)
    assert isinstance(found, Load)
    assert found.shape.size == Size(300, SizeSource.MEASURED)


def test_a_model_is_spread_further_where_that_makes_it_fit() -> None:
    """A model too large for its minimum number of devices takes twice as many, where its model config allows."""
    four = node("n1", tuple(device(i, 300) for i in range(4)))
    tight = model_config("a", 1000, min_devices=2)
    assert isinstance(plan(PlacementRequest(tight), cluster(four), LRU), Impossible)
    wide = model_config("a", 1000, min_devices=2, max_devices=4)
    found = plan(PlacementRequest(wide), cluster(four), LRU)
    assert isinstance(found, Load)
    assert found.devices == (0, 1, 2, 3)


def test_different_gpus_do_not_share_a_model_unless_allowed() -> None:
    """Devices of different types are combined only with `mixed_devices`."""
    unequal = cluster(node("n1", (device(0, 500, name="L40"), device(1, 500, name="H200"))))
    pair = model_config("a", 800, min_devices=2)
    assert isinstance(plan(PlacementRequest(pair), unequal, LRU), Impossible)
    mixed = model_config("a", 800, min_devices=2, mixed_devices=True)
    assert isinstance(plan(PlacementRequest(mixed), unequal, LRU), Load)


@pytest.mark.parametrize(
    ("wanted", "at", "reason"),
    [
        ({"min_compute_capability": "9.1"}, 0, "compute capability 9.0 is below 9.1"),
        ({"min_compute_capability": "10.0"}, 0, "compute capability 9.0 is below 10.0"),
        ({"min_device_vram_mb": 2000}, 0, "has 1000 MiB in total; the model requires 2000"),
        ({"device_kind": "cpu"}, 0, "a cuda device, not cpu"),
        ({"vram_mb": 1001}, 0, "needs 1001 MiB (configured), 1000 available"),
        ({"harness": "other"}, None, "the node has no harness 'other'"),
        ({"nodes": ["n2"]}, None, "not among the nodes of its model config"),
        ({"labels": {"rack": "b"}}, None, "the node has no label rack=b"),
    ],
)
def test_each_refusal_names_the_unmet_requirement(
    wanted: dict[str, object], at: int | None, reason: str
) -> None:
    """An impossible model lists the unmet requirement for each device or node."""
    policy = Policy(labels={"n1": {"rack": "a"}})
    found = plan(
        PlacementRequest(model_config("a", **wanted)), cluster(node("n1", (device(0),))), policy
    )
    assert isinstance(found, Impossible)
    assert [(r.node, r.device, r.reason) for r in found.refusals] == [("n1", at, reason)]
    assert not found.no_node


@pytest.mark.parametrize(
    ("mb", "at", "named"),
    [(600, None, ("n1", "n2")), (600, "n1", ("n1",)), (900, None, ("n2",)), (1200, None, ())],
)
def test_a_blocking_cordon_is_named(mb: int, at: str | None, named: tuple[str, ...]) -> None:
    """Of the cordoned nodes, exactly those that could hold the model are named."""
    nodes = (
        node("n1", (device(0, 800),), cordoned=True),
        node("n2", (device(0, 1000),), cordoned=True),
        node("n3", (device(0, 100),)),
    )
    found = plan(
        PlacementRequest(model_config("a", mb), constraints=PlacementConstraints(at)),
        cluster(*nodes),
        LRU,
    )
    assert isinstance(found, Impossible)
    assert found.cordoned == named


def test_an_engine_is_placed_only_on_supported_devices() -> None:
    """A GPU with more memory is not used for an engine without GPU code, as its node reports."""
    devices = (device(0), device(1, 500, kind=DeviceKind.CPU, name="EPYC"))
    here = node("n1", devices, harness_kinds={"fake": (DeviceKind.CPU,)})
    found = plan(PlacementRequest(model_config("a")), cluster(here), LRU)
    assert isinstance(found, Load)
    assert (found.devices, found.shape.kind) == ((1,), DeviceKind.CPU)
    too_large = plan(PlacementRequest(model_config("a", 600)), cluster(here), LRU)
    assert isinstance(too_large, Impossible)
    assert too_large.refusals[0].reason == "engines of harness 'fake' do not run on a cuda device"


def test_a_lost_device_is_refused() -> None:
    """The refusal carries the driver's reason."""
    lost = device(0, health=DeviceHealth.LOST, reason="fallen off the bus")
    found = plan(PlacementRequest(model_config("a")), cluster(node("n1", (lost,))), LRU)
    assert isinstance(found, Impossible)
    assert found.refusals[0].reason == "fallen off the bus"


def test_a_fleet_that_is_down_is_another_error() -> None:
    """With no node up, the plan reports that instead of missing memory."""
    down = node("n1", (device(0),), state=NodeState.UNREACHABLE, reason="connection refused")
    found = plan(PlacementRequest(model_config("a")), cluster(down), LRU)
    assert isinstance(found, Impossible)
    assert found.no_node
    assert found.refusals[0].reason == "connection refused"


@pytest.mark.parametrize(("mb", "passes"), [(600, True), (1200, False)])
def test_a_suitable_node_that_is_down_is_not_missing_memory(mb: int, passes: bool) -> None:
    """Other nodes that are up but can't hold the model do not make the outage final."""
    down = node("n1", (device(0),), state=NodeState.UNREACHABLE)
    small = node("n2", (device(0, 100),))
    found = plan(PlacementRequest(model_config("a", mb)), cluster(down, small), LRU)
    assert isinstance(found, Impossible)
    assert found.no_node is passes


def test_a_node_that_never_reported_may_be_suitable() -> None:
    """A gateway that starts while a host is off calls nothing impossible that the host may be able to serve."""
    off = node("n1", (), state=NodeState.UNREACHABLE, harnesses=())
    small = node("n2", (device(0, 100),))
    found = [
        plan(PlacementRequest(model_config("a", 600, nodes=names)), cluster(off, small), LRU)
        for names in ((), ("n1",), ("n2",))
    ]
    assert [f.no_node for f in found if isinstance(f, Impossible)] == [True, True, False]


@pytest.mark.parametrize(
    ("more", "waits"),
    [
        ({"seen_at": NOW - 5, "absent_s": 5.0}, True),
        ({"seen_at": NOW - 60, "absent_s": 60.0}, False),
        ({"seen_at": NOW + 3600, "absent_s": 5.0}, True),
        ({"seen_at": NOW - 90_000, "absent_s": 5.0}, True),
        ({"seen_at": 0.0, "absent_s": 5.0}, False),
        ({"seen_at": NOW - 61, "absent_s": 61.0, "stopping_s": 150}, True),
        ({"seen_at": NOW - 215, "absent_s": 215.0, "stopping_s": 150}, False),
    ],
)
def test_a_node_that_was_just_lost_is_expected_back(more: dict[str, float], waits: bool) -> None:
    """A neuron that restarts fails no request, however long it relays; one that stays away or is unsuitable does."""
    lost = node("n1", (device(0),), state=NodeState.UNREACHABLE, **more)
    assert isinstance(plan(PlacementRequest(model_config("a")), cluster(lost), LRU), Wait) is waits
    other = replace(lost, harnesses=("other",))
    assert isinstance(plan(PlacementRequest(model_config("a")), cluster(other), LRU), Impossible)


def test_a_node_that_has_not_reported_yet_is_waited_for() -> None:
    """While a gateway starts, no model is impossible before all nodes were tried."""
    new = node("n1", (), state=NodeState.CONNECTING)
    assert isinstance(plan(PlacementRequest(model_config("a")), cluster(new), LRU), Wait)


def test_a_model_on_a_node_that_has_not_reported_is_not_loaded_twice() -> None:
    """A gateway that has just started waits for the node that may have the model, and for no other."""
    fleet = cluster(node("n1", (), state=NodeState.CONNECTING), node("n2", (device(0),)))
    assert isinstance(plan(PlacementRequest(model_config("a")), fleet, LRU), Wait)
    assert isinstance(plan(PlacementRequest(model_config("a", nodes=("n2",))), fleet, LRU), Load)


# -- evictions ---------------------------------------------------------------------------------------


def full(*instances: InstanceView) -> ClusterState:
    """Return a fleet of one 300 MiB device that holds these instances."""
    return cluster(node("n1", (device(0, 300),), instances))


def test_the_least_recently_used_is_evicted_first() -> None:
    """The instance whose last request ended longest ago is evicted."""
    fleet = full(
        instance("a", last_used=NOW - 10),
        instance("b", last_used=NOW - 99),
        instance("c", last_used=NOW - 50),
    )
    found = plan(PlacementRequest(model_config("f", 100)), fleet, LRU)
    assert isinstance(found, Load)
    assert found.evictions == ("b@n1/0",)


def test_a_recent_instance_is_kept_until_patience_ends() -> None:
    """An instance that has been ready for less time than its load took is evicted only after a wait."""
    fleet = full(instance("a", mb=300, started_at=NOW - 30, load_seconds=20.0))
    assert isinstance(
        plan(PlacementRequest(model_config("f", 100), waited_s=0.0), fleet, LRU), Wait
    )
    found = plan(PlacementRequest(model_config("f", 100), waited_s=5.0), fleet, LRU)
    assert isinstance(found, Load)
    assert found.evictions == ("a@n1/0",)


def test_a_busy_instance_is_drained_only_after_patience_ends() -> None:
    """Memory held by running requests is waited for, then drained."""
    fleet = full(instance("a", mb=300, in_flight=3))
    assert plan(PlacementRequest(model_config("f"), waited_s=0.0), fleet, LRU) == Wait(
        (InstanceId("a@n1/0"),), "memory is held by busy instances on n1"
    )
    assert isinstance(plan(PlacementRequest(model_config("f"), waited_s=5.0), fleet, LRU), Load)


def test_a_busy_recent_instance_is_drained_last() -> None:
    """A just loaded busy instance stays for its residency beyond patience, so that models do not thrash."""
    made = instance("a", mb=300, in_flight=3, started_at=NOW - 30, load_seconds=20.0)
    fleet = full(made)
    assert isinstance(plan(PlacementRequest(model_config("f"), waited_s=5.0), fleet, LRU), Wait)
    late = LRU.patience_s + LRU.min_residency_s
    assert isinstance(plan(PlacementRequest(model_config("f"), waited_s=late), fleet, LRU), Load)


def test_an_idle_instance_elsewhere_is_evicted_before_a_busy_one() -> None:
    """A node with an idle candidate is preferred, however long ago the busy one was used."""
    fleet = cluster(
        node("n1", (device(0, 100),), (instance("a", in_flight=1, last_used=NOW - 999),)),
        node("n2", (device(0, 100),), (instance("b", "n2", last_used=NOW - 1),)),
    )
    found = plan(PlacementRequest(model_config("f", 100), waited_s=PATIENCE_OVER), fleet, LRU)
    assert isinstance(found, Load)
    assert found.evictions == ("b@n2/0",)


def test_a_pinned_fleet_is_impossible_immediately() -> None:
    """Where only pinned instances hold the memory, no request waits."""
    fleet = full(instance("a", mb=300, pinned=True))
    found = plan(PlacementRequest(model_config("f"), waited_s=0.0), fleet, LRU)
    assert isinstance(found, Impossible)
    assert found.refusals[0].missing_mb == 100
    assert found.refusals[0].reason.endswith("; pinned there: a")


def test_an_operators_pin_holds_like_a_configured_one() -> None:
    """A pin in the overlay protects the instance, on its node or on any."""
    fleet = node("n1", (device(0, 300),), (instance("a", mb=300),))
    for where in ("n1", None):
        pinned = cluster(fleet, overlay=Overlay(pins=frozenset({(ModelId("a"), where)})))
        assert isinstance(plan(PlacementRequest(model_config("f")), pinned, LRU), Impossible)
    elsewhere = cluster(fleet, overlay=Overlay(pins=frozenset({(ModelId("a"), "n2")})))
    assert isinstance(plan(PlacementRequest(model_config("f")), elsewhere, LRU), Load)


def test_the_last_required_replica_stays() -> None:
    """An instance required by `replicas.min` is not evicted."""
    kept = {ModelId("a"): ModelStats(min_replicas=1)}
    one = node("n1", (device(0, 100),), (instance("a"),))
    assert isinstance(
        plan(PlacementRequest(model_config("f")), cluster(one, stats=kept), LRU), Impossible
    )
    two = node("n2", (device(0, 100),), (instance("a", "n2", last_used=NOW - 999),))
    found = plan(PlacementRequest(model_config("f")), cluster(one, two, stats=kept), LRU)
    assert isinstance(found, Load)
    assert found.evictions == ("a@n2/0",)


def test_memory_that_becomes_free_is_waited_for() -> None:
    """No eviction competes for memory that a stopping or loading instance may free."""
    for state in (InstanceState.STOPPING, InstanceState.LOADING):
        fleet = full(instance("a", mb=300, state=state))
        assert isinstance(
            plan(PlacementRequest(model_config("f"), waited_s=PATIENCE_OVER), fleet, LRU), Wait
        )


def test_cost_keeps_frequently_requested_models() -> None:
    """Under `cost`, the model without requests is evicted, though the other was used longer ago."""
    stats = {
        ModelId("hot"): ModelStats(reload_s=30, rate=1.0),
        ModelId("cold"): ModelStats(reload_s=30, rate=0.0001),
    }
    fleet = cluster(
        node(
            "n1",
            (device(0, 200),),
            (instance("hot", last_used=NOW - 60), instance("cold", last_used=NOW - 1)),
        ),
        stats=stats,
    )
    found = plan(PlacementRequest(model_config("f", 100)), fleet, Policy(strategy=Strategy.COST))
    assert isinstance(found, Load)
    assert found.evictions == ("cold@n1/0",)


def test_an_operator_chooses_node_and_devices() -> None:
    """A request that names node and device is placed there and nowhere else."""
    fleet = cluster(
        node("n1", (device(0), device(1))),
        node("n2", (device(0), device(1)), (instance("a", "n2", (0,)),)),
    )
    found = plan(
        PlacementRequest(model_config("a"), constraints=PlacementConstraints("n1", (1,))),
        fleet,
        LRU,
    )
    assert isinstance(found, Load)
    assert (found.node, found.devices) == ("n1", (1,))
    assert isinstance(
        plan(
            PlacementRequest(model_config("a"), constraints=PlacementConstraints("n2")), fleet, LRU
        ),
        Serve,
    )


def test_nothing_is_evicted_for_a_model_whose_node_is_away_for_moments() -> None:
    """Requests wait for the node; memory that is free elsewhere is used, and after the grace period another goes."""
    held = instance("a", node="n1")
    away = node("n1", (device(0, 100),), (held,), state=NodeState.UNREACHABLE, seen_at=NOW)
    full = node("n2", (device(0, 100),), (instance("b", node="n2"),))
    request = PlacementRequest(model_config("a"), waited_s=5.0)
    for absent_s in (0.0, 59.0):
        waiting = plan(request, cluster(replace(away, absent_s=absent_s), full), LRU)
        assert isinstance(waiting, Wait)
        assert "n1, which has it loaded" in waiting.reason
    gone = plan(request, cluster(replace(away, absent_s=60.0), full), LRU)
    assert isinstance(gone, Load)
    assert gone.evictions == ("b@n2/0",)
    empty = node("n2", (device(0, 100),))
    elsewhere = plan(request, cluster(away, empty), LRU)
    assert isinstance(elsewhere, Load)
    assert elsewhere.node == "n2"
