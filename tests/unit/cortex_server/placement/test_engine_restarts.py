from __future__ import annotations

import pytest
from core_worlds import NOW, device, instance, node

from cortex_common.schema.fleet import EngineView, InstanceView, NodeState, NodeView
from cortex_common.schema.instances import InstanceState, ModelId
from cortex_server.placement.engine_restarts import Restart, affordable, choose, due_restarts
from cortex_server.placement.eviction import ModelStats

AFTER = 50


def attached(*instances: InstanceView, cycles: int = AFTER, **more: object) -> NodeView:
    """A node whose harness `fake` is an engine of somebody else."""
    engine = EngineView(harness="fake", restartable=True, cycles=cycles)
    return node("n1", (device(0),), instances, **({"engines": (engine,)} | more))


def due(*nodes: NodeView) -> tuple[Restart, ...]:
    """What is due among these."""
    return due_restarts(nodes, {ModelId("a"): ModelStats(reload_s=40)}, AFTER, NOW)


def test_an_engine_is_due_after_so_many_loads_and_unloads():
    """Fewer cycles, a lost node or the setting 0 make none due; what is in it comes back, pinned or not."""
    pinned = instance("b", mb=50, pinned=True)
    found = due(attached(instance("a"), pinned))
    assert [(r.harness, r.seconds, r.idle_s, r.hindrance) for r in found] == [
        ("fake", 50, 600, None)
    ]
    assert found[0].instances[1] == pinned
    assert due(attached(cycles=AFTER - 1)) == ()
    assert due(attached(state=NodeState.UNREACHABLE)) == ()
    assert due_restarts((attached(),), {}, 0, NOW) == ()


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"engines": (EngineView("fake", cycles=AFTER),)}, "knows no unit"),
        (
            {"engines": (EngineView("fake", reachable=False, restartable=True, cycles=AFTER),)},
            "does not answer",
        ),
        (
            {"engines": (EngineView("fake", restartable=True, restarting=True, cycles=AFTER),)},
            "is being restarted",
        ),
        ({}, "a is loading in it"),
    ],
)
def test_what_hinders_a_restart_is_said(there: dict[str, object], reason: str):
    """An engine that can't be restarted now is shown with the reason, and left alone."""
    found = due(attached(instance("a", state=InstanceState.LOADING), **there))
    assert reason in (found[0].hindrance or "")
    assert choose(found, AFTER) is None
    assert affordable(found, 1000) == ()


def test_a_quiet_moment_is_waited_for_but_not_for_ever():
    """A busy or lately used engine is restarted unasked only at twice the cycles."""
    for used in ({"in_flight": 1}, {"last_used": NOW - 5}):
        assert choose(due(attached(instance("a", **used))), AFTER) is None
        late = due(attached(instance("a", **used), cycles=2 * AFTER))
        assert choose(late, AFTER) == late[0]
    quiet = due(attached(instance("a")))
    assert choose(quiet, AFTER) == quiet[0]


def test_restarts_stay_within_the_seconds_there_are():
    """Those with most cycles are chosen first, and no more than the budget has time for."""
    small = instance("b", "n2", mb=50)
    other = node(
        "n2", (device(0),), (small,), engines=(EngineView("fake", restartable=True, cycles=90),)
    )
    found = due(attached(instance("a")), other)
    assert [r.node for r in found] == ["n2", "n1"]
    assert [r.node for r in affordable(found, 49)] == ["n2"]
    assert [r.node for r in affordable(found, 50)] == ["n2", "n1"]
