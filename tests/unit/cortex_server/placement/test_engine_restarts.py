from __future__ import annotations

import pytest
from placement_states import NOW, device, instance, node

from cortex_common.schema.fleet import EngineView, InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_server.placement.engine_restarts import (
    Restart,
    choose_restart,
    due_restarts,
    within_time_budget,
)
from cortex_server.placement.eviction import ModelStats

AFTER = 50


def attached(*instances: InstanceView, cycles: int = AFTER, **more: object) -> NodeView:
    """Return a node whose harness `fake` is an attached engine."""
    engine = EngineView(harness="fake", restartable=True, cycles=cycles)
    return node("n1", (device(0),), instances, **({"engines": (engine,)} | more))


def due(*nodes: NodeView) -> tuple[Restart, ...]:
    """Return the restarts that are due on these nodes."""
    return due_restarts(nodes, {ModelId("a"): ModelStats(reload_s=40)}, AFTER, NOW)


def test_an_engine_is_due_after_so_many_loads_and_unloads():
    """Fewer cycles, an unreachable node, or the setting 0 make none due; all its instances come back, pinned or not."""
    pinned = instance("b", mb=50, pinned=True)
    found = due(attached(instance("a"), pinned))
    assert [(r.harness, r.seconds, r.idle_s, r.blocker) for r in found] == [("fake", 50, 600, None)]
    assert found[0].instances[1] == pinned
    assert due(attached(cycles=AFTER - 1)) == ()
    assert due(attached(state=NodeState.UNREACHABLE)) == ()
    assert due_restarts((attached(),), {}, 0, NOW) == ()


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"engines": (EngineView("fake", cycles=AFTER),)}, "has no systemd unit"),
        (
            {"engines": (EngineView("fake", reachable=False, restartable=True, cycles=AFTER),)},
            "is unreachable",
        ),
        (
            {"engines": (EngineView("fake", restartable=True, restarting=True, cycles=AFTER),)},
            "is being restarted",
        ),
        ({}, "a is loading in it"),
    ],
)
def test_a_blocked_restart_names_its_blocker(there: dict[str, object], reason: str):
    """An engine that can't be restarted now is listed with the reason, and not restarted."""
    found = due(attached(instance("a", state=InstanceState.LOADING), **there))
    assert reason in (found[0].blocker or "")
    assert choose_restart(found, AFTER) is None
    assert within_time_budget(found, 1000) == ()


def test_a_busy_engine_is_restarted_at_twice_the_cycles():
    """A busy or recently used engine is restarted automatically only at twice the cycles."""
    for used in ({"in_flight": 1}, {"last_used": NOW - 5}):
        assert choose_restart(due(attached(instance("a", **used))), AFTER) is None
        late = due(attached(instance("a", **used), cycles=2 * AFTER))
        assert choose_restart(late, AFTER) == late[0]
    quiet = due(attached(instance("a")))
    assert choose_restart(quiet, AFTER) == quiet[0]


def test_restarts_stay_within_the_time_budget():
    """Engines with the most cycles come first, as far as the budget allows."""
    small = instance("b", "n2", mb=50)
    other = node(
        "n2", (device(0),), (small,), engines=(EngineView("fake", restartable=True, cycles=90),)
    )
    found = due(attached(instance("a")), other)
    assert [r.node for r in found] == ["n2", "n1"]
    assert [r.node for r in within_time_budget(found, 49)] == ["n2"]
    assert [r.node for r in within_time_budget(found, 50)] == ["n2", "n1"]
