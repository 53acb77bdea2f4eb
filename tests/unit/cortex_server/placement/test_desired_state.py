from __future__ import annotations

from dataclasses import replace

from core_worlds import NOW, device, instance, model_config, node

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, NodeState
from cortex_common.schema.instances import InstanceState
from cortex_server.placement.desired_state import DesiredState, preloads
from cortex_server.placement.load_queue import LoadKey


def fleet(*instances: InstanceView, at: float = NOW) -> FleetSnapshot:
    """A fleet of one node with these instances."""
    return FleetSnapshot(1, at, (node("n1", (device(0),), instances),))


def keeper(ttl: float = 60.0) -> DesiredState:
    """One with a time to live for all models."""
    return DesiredState(idle_ttl_s=ttl, scale_out_after_s=10.0)


def wanted(**more: object) -> list[ModelConfig]:
    """The one profile of the catalogue."""
    return [model_config("a", **more)]


def test_an_idle_instance_goes_after_its_time() -> None:
    """It is unloaded once it was idle for the time to live, counted from when it was first seen idle."""
    upkeep, a = keeper(), instance("a")
    assert upkeep.due(fleet(a), wanted(), 0.0).unload == ()
    assert upkeep.due(fleet(a), wanted(), 59.0).unload == ()
    assert upkeep.due(fleet(a), wanted(), 60.0).unload == (a,)


def test_what_an_operator_said_wins_over_the_profile() -> None:
    """A time to live said at the load stands instead of the profile's, be it shorter, longer or 0 for never."""
    a = instance("a")
    for said, at_30, at_90 in ((20.0, (a,), (a,)), (80.0, (), (a,)), (0.0, (), ())):
        upkeep = keeper()
        upkeep.ttls["a"] = said
        upkeep.due(fleet(a), wanted(ttl="25s"), 0.0)
        assert upkeep.due(fleet(a), wanted(ttl="25s"), 30.0).unload == at_30
        assert upkeep.due(fleet(a), wanted(ttl="25s"), 90.0).unload == at_90


def test_use_begins_the_time_anew() -> None:
    """A request, running or just ended, puts the end off."""
    upkeep, a = keeper(), instance("a")
    upkeep.due(fleet(a), wanted(), 0.0)
    upkeep.due(fleet(replace(a, in_flight=1)), wanted(), 50.0)
    assert upkeep.due(fleet(a), wanted(), 70.0).unload == ()
    used = replace(a, last_used=NOW)
    assert upkeep.due(fleet(used), wanted(), 120.0).unload == ()
    assert upkeep.due(fleet(used), wanted(), 180.0).unload == (used,)


def test_a_clock_that_jumps_unloads_nothing() -> None:
    """Host time a year ahead ends no idle time."""
    upkeep, a = keeper(), instance("a")
    upkeep.due(fleet(a), wanted(), 0.0)
    assert upkeep.due(fleet(a, at=NOW + 31_536_000), wanted(), 1.0).unload == ()


def test_who_is_protected_stays() -> None:
    """Pinned and kept instances stay, and a profile's own time, 0 for never, wins over the general one."""
    a = instance("a")
    for shown, model_configs in (
        (replace(a, pinned=True), wanted()),
        (a, wanted(replicas={"min": 1, "max": 1})),
        (a, wanted(ttl=0)),
        (replace(a, state=InstanceState.LOADING), wanted()),
    ):
        upkeep = keeper()
        upkeep.due(fleet(shown), model_configs, 0.0)
        assert upkeep.due(fleet(shown), model_configs, 1e6).unload == ()


def test_missing_replicas_are_wanted() -> None:
    """Below replicas.min an instance is wanted, a further one when some are there; loading ones count."""
    two = wanted(replicas={"min": 2, "max": 2})
    assert keeper().due(fleet(), two, 0.0).want == (LoadKey("a"),)
    one = instance("a")
    assert keeper().due(fleet(one), two, 0.0).want == (LoadKey("a", replica=True),)
    loading = instance("a", devices=(1,), state=InstanceState.LOADING)
    assert keeper().due(fleet(one, loading), two, 0.0).want == ()


def test_what_an_operator_unloaded_is_not_missed() -> None:
    """Until it is asked for again, replicas.min brings nothing back."""
    upkeep, kept = keeper(), wanted(replicas={"min": 1, "max": 1})
    upkeep.ended.add("a")
    assert upkeep.due(fleet(), kept, 0.0).want == ()
    upkeep.ended.discard("a")
    assert upkeep.due(fleet(), kept, 1.0).want == (LoadKey("a"),)


def test_what_another_gateway_loads_after_an_unload_is_kept_again() -> None:
    """It was asked for again, though not here."""
    upkeep, kept = keeper(), wanted(replicas={"min": 1, "max": 1})
    upkeep.ended.add("a")
    ready, draining = instance("a"), instance("a", state=InstanceState.DRAINING)
    assert upkeep.due(fleet(draining), kept, 0.0).want == ()
    assert upkeep.due(fleet(), kept, 1.0).want == ()
    assert upkeep.due(fleet(ready), kept, 2.0).want == ()
    assert upkeep.due(fleet(), kept, 3.0).want == (LoadKey("a"),)


def test_a_model_that_stays_full_gets_another_instance() -> None:
    """All slots taken for long enough wants one more, up to replicas.max, without evicting; a free slot begins anew."""
    upkeep, many = keeper(), wanted(replicas={"min": 0, "max": 2})
    full = instance("a", parallel=2, in_flight=2)
    assert upkeep.due(fleet(full), many, 0.0).want == ()
    assert upkeep.due(fleet(replace(full, in_flight=1)), many, 8.0).want == ()
    assert upkeep.due(fleet(full), many, 9.0).want == ()
    further = LoadKey("a", replica=True, may_evict=False)
    assert upkeep.due(fleet(full), many, 19.0).want == (further,)
    other = instance("a", devices=(1,), parallel=2, in_flight=2)
    assert upkeep.due(fleet(full, other), many, 40.0).want == ()


def test_no_replica_is_missed_before_every_node_has_told_what_it_holds() -> None:
    """A gateway that has just begun wants none that a node may hold already."""
    unheard = node("n2", (), state=NodeState.CONNECTING)
    begun = FleetSnapshot(1, NOW, (node("n1", (device(0),), ()), unheard))
    kept = wanted(replicas={"min": 2, "max": 2})
    assert keeper().due(begun, kept, 0.0).want == ()
    told = FleetSnapshot(1, NOW, (begun.nodes[0], replace(unheard, state=NodeState.UNREACHABLE)))
    assert keeper().due(told, kept, 0.0).want == (LoadKey("a"),)


def test_preloads_do_not_evict() -> None:
    """What is loaded at start is what asks for it, and it takes free room only."""
    model_configs = [model_config("a", preload=True), model_config("b")]
    assert preloads(model_configs) == (LoadKey("a", may_evict=False),)
