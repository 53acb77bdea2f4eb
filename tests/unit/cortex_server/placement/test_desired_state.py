from __future__ import annotations

from dataclasses import replace

from placement_states import NOW, device, instance, model_config, node

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.instances import InstanceState
from cortex_server.placement.desired_state import DesiredState
from cortex_server.placement.load_queue import LoadKey


def fleet(*instances: InstanceView, at: float = NOW) -> FleetSnapshot:
    """Return a fleet of one node with these instances."""
    return FleetSnapshot(1, at, (node("n1", (device(0),), instances),))


def new_desired_state(ttl: float = 60.0) -> DesiredState:
    """One with a time to live for all models."""
    return DesiredState(idle_ttl_s=ttl, scale_out_after_s=10.0)


def wanted(**more: object) -> list[ModelConfig]:
    """Return the only model config."""
    return [model_config("a", **more)]


def test_an_idle_instance_is_unloaded_after_its_ttl() -> None:
    """The time to live counts from when the instance was first seen idle."""
    desired_state, a = new_desired_state(), instance("a")
    assert desired_state.actions(fleet(a), wanted(), 0.0).unload == ()
    assert desired_state.actions(fleet(a), wanted(), 59.0).unload == ()
    assert desired_state.actions(fleet(a), wanted(), 60.0).unload == (a,)


def test_an_operators_ttl_overrides_the_model_config() -> None:
    """A time to live given with a load applies instead of the configured one: shorter, longer, or 0 for never."""
    a = instance("a")
    for said, at_30, at_90 in ((20.0, (a,), (a,)), (80.0, (), (a,)), (0.0, (), ())):
        desired_state = new_desired_state()
        desired_state.ttls["a"] = said
        desired_state.actions(fleet(a), wanted(ttl="25s"), 0.0)
        assert desired_state.actions(fleet(a), wanted(ttl="25s"), 30.0).unload == at_30
        assert desired_state.actions(fleet(a), wanted(ttl="25s"), 90.0).unload == at_90


def test_a_request_restarts_the_ttl() -> None:
    """A request, running or just finished, postpones the unload."""
    desired_state, a = new_desired_state(), instance("a")
    desired_state.actions(fleet(a), wanted(), 0.0)
    desired_state.actions(fleet(replace(a, in_flight=1)), wanted(), 50.0)
    assert desired_state.actions(fleet(a), wanted(), 70.0).unload == ()
    used = replace(a, last_used=NOW)
    assert desired_state.actions(fleet(used), wanted(), 120.0).unload == ()
    assert desired_state.actions(fleet(used), wanted(), 180.0).unload == (used,)


def test_a_clock_that_jumps_unloads_nothing() -> None:
    """A host clock a year ahead ends no idle time."""
    desired_state, a = new_desired_state(), instance("a")
    desired_state.actions(fleet(a), wanted(), 0.0)
    assert desired_state.actions(fleet(a, at=NOW + 31_536_000), wanted(), 1.0).unload == ()


def test_pinned_and_required_instances_stay() -> None:
    """Pinned instances and `replicas.min` stay, and a model's own time to live overrides the general one."""
    a = instance("a")
    for shown, model_configs in (
        (replace(a, pinned=True), wanted()),
        (a, wanted(replicas={"min": 1, "max": 1})),
        (a, wanted(ttl=0)),
        (replace(a, state=InstanceState.LOADING), wanted()),
    ):
        desired_state = new_desired_state()
        desired_state.actions(fleet(shown), model_configs, 0.0)
        assert desired_state.actions(fleet(shown), model_configs, 1e6).unload == ()


def test_missing_replicas_are_loaded() -> None:
    """Below `replicas.min` an instance is loaded; instances that are loading count."""
    two = wanted(replicas={"min": 2, "max": 2})
    assert new_desired_state().actions(fleet(), two, 0.0).load == (LoadKey("a"),)
    one = instance("a")
    assert new_desired_state().actions(fleet(one), two, 0.0).load == (LoadKey("a", replica=True),)
    loading = instance("a", devices=(1,), state=InstanceState.LOADING)
    assert new_desired_state().actions(fleet(one, loading), two, 0.0).load == ()


def test_replicas_are_not_restored_after_an_operators_unload() -> None:
    """`replicas.min` has no effect until the model is requested again."""
    desired_state, kept = new_desired_state(), wanted(replicas={"min": 1, "max": 1})
    desired_state.unloaded_models.add("a")
    assert desired_state.actions(fleet(), kept, 0.0).load == ()
    desired_state.unloaded_models.discard("a")
    assert desired_state.actions(fleet(), kept, 1.0).load == (LoadKey("a"),)


def test_a_load_by_another_gateway_ends_the_unload() -> None:
    """The model was requested again, though through another gateway."""
    desired_state, kept = new_desired_state(), wanted(replicas={"min": 1, "max": 1})
    desired_state.unloaded_models.add("a")
    ready, draining = instance("a"), instance("a", state=InstanceState.DRAINING)
    assert desired_state.actions(fleet(draining), kept, 0.0).load == ()
    assert desired_state.actions(fleet(), kept, 1.0).load == ()
    assert desired_state.actions(fleet(ready), kept, 2.0).load == ()
    assert desired_state.actions(fleet(), kept, 3.0).load == (LoadKey("a"),)


def test_a_model_that_stays_full_gets_another_instance() -> None:
    """It is loaded without evictions, up to `replicas.max`; a free slot restarts the time."""
    desired_state, many = new_desired_state(), wanted(replicas={"min": 0, "max": 2})
    full = instance("a", parallel=2, in_flight=2)
    assert desired_state.actions(fleet(full), many, 0.0).load == ()
    assert desired_state.actions(fleet(replace(full, in_flight=1)), many, 8.0).load == ()
    assert desired_state.actions(fleet(full), many, 9.0).load == ()
    further = LoadKey("a", replica=True, may_evict=False)
    assert desired_state.actions(fleet(full), many, 19.0).load == (further,)
    other = instance("a", devices=(1,), parallel=2, in_flight=2)
    assert desired_state.actions(fleet(full, other), many, 40.0).load == ()


def test_no_replica_is_missing_before_every_node_has_reported() -> None:
    """A gateway that has just started loads nothing that a node may hold already."""
    unheard = node("n2", (), state=NodeState.CONNECTING)
    started = FleetSnapshot(1, NOW, (node("n1", (device(0),), ()), unheard))
    kept = wanted(replicas={"min": 2, "max": 2})
    assert new_desired_state().actions(started, kept, 0.0).load == ()
    unreachable = FleetSnapshot(
        1, NOW, (started.nodes[0], replace(unheard, state=NodeState.UNREACHABLE))
    )
    assert new_desired_state().actions(unreachable, kept, 0.0).load == (LoadKey("a"),)


def test_a_preload_waits_for_its_node() -> None:
    """A model with `preload` is loaded once a node that has its harness is up, without evictions, and only once."""
    desired_state, preloaded = new_desired_state(ttl=0.0), wanted(preload=True)
    away = FleetSnapshot(
        1, NOW, (node("n1", (device(0),), (), state=NodeState.UNREACHABLE, seen_at=NOW),)
    )
    assert desired_state.actions(away, preloaded, 0.0).load == ()
    due = (LoadKey("a", may_evict=False),)
    assert desired_state.actions(fleet(), preloaded, 90_000.0).load == due
    assert desired_state.actions(fleet(), preloaded, 90_001.0).load == due
    assert desired_state.actions(fleet(instance("a")), preloaded, 90_002.0).load == ()
    assert desired_state.actions(fleet(), preloaded, 90_003.0).load == ()


def test_replicas_on_a_node_that_is_away_for_moments_are_not_missing() -> None:
    """A replacement is loaded only once the node is not expected back any more."""
    desired_state, kept = new_desired_state(), wanted(replicas={"min": 1, "max": 1})
    away = node("n1", (device(0),), (instance("a"),), state=NodeState.UNREACHABLE, seen_at=NOW)
    other = node("n2", (device(0),))
    for absent_s, due in ((1.0, ()), (59.0, ()), (60.0, (LoadKey("a"),))):
        snapshot = FleetSnapshot(1, NOW, (replace(away, absent_s=absent_s), other))
        assert desired_state.actions(snapshot, kept, absent_s).load == due


def test_replicas_are_trimmed_when_a_node_is_back() -> None:
    """A copy that was loaded elsewhere goes again: an idle one, least recently used, and never the last."""
    desired_state, kept = new_desired_state(ttl=0.0), wanted(replicas={"min": 1, "max": 1})
    original, copy = instance("a", last_used=NOW - 60), instance("a", node="n2", last_used=NOW)
    n1 = node("n1", (device(0),), (original,), seen_at=NOW)
    n2 = node("n2", (device(0),), (copy,))
    away = FleetSnapshot(1, NOW, (replace(n1, state=NodeState.UNREACHABLE, absent_s=90.0), n2))
    assert desired_state.actions(FleetSnapshot(1, NOW, (n1, n2)), kept, 0.0).surplus == ()
    assert desired_state.actions(away, kept, 1.0).surplus == ()
    back = FleetSnapshot(1, NOW, (n1, n2))
    assert desired_state.actions(back, kept, 2.0).surplus == (original,)
    assert desired_state.actions(FleetSnapshot(1, NOW, (n2,)), kept, 3.0).surplus == ()
    assert desired_state.actions(back, kept, 4.0).surplus == ()


def test_copies_on_external_upstreams_are_no_replicas() -> None:
    """`replicas.min` is kept by instances of this fleet."""
    upstream = node("cloud", (), (instance("a", node="cloud"),), upstream=True)
    snapshot = FleetSnapshot(1, NOW, (node("n1", (device(0),)), upstream))
    kept = wanted(replicas={"min": 1, "max": 1})
    assert new_desired_state().actions(snapshot, kept, 0.0).load == (LoadKey("a"),)
