from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from placement_states import NOW, cluster, clusters, device, instance, node

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.placement.capacity import node_capacity
from cortex_server.placement.defrag import Budget, DefragPlan, plan_defrag
from cortex_server.placement.eviction import ModelStats
from cortex_server.placement.state import ClusterState

budgets = st.builds(
    Budget,
    moves=st.integers(1, 3),
    seconds=st.sampled_from([5.0, 600.0]),
    cross_node=st.booleans(),
)


def available(before: ClusterState) -> dict[tuple[str, int], int]:
    """MiB available on each device."""
    return {(r.node.name, d.index): d.available_mb for r in before.capacities for d in r.devices}


def after_moves(found: DefragPlan, before: ClusterState) -> dict[tuple[str, int], int]:
    """Yield the available memory after each move, with copy and original side by side in between."""
    left = available(before)
    for move in found.moves:
        left[move.to_node, move.to_device] -= move.mb
        assert left[move.to_node, move.to_device] >= 0
        left[move.node, move.device] += move.mb
    return left


@given(clusters(), budgets, st.one_of(st.none(), st.integers(1, 800)))
def test_every_move_is_feasible_and_within_budget(
    before: ClusterState, budget: Budget, wanted: int | None
) -> None:
    """Every copy fits when it is loaded, the block has the announced size, and no pinned instance moves."""
    found = plan_defrag(before.capacities, before.stats, budget, wanted_mb=wanted)
    if found is None:
        return
    after = after_moves(found, before)
    instances = {i.id: i for r in before.capacities for i in r.instances}
    assert after[found.node, found.device] == found.after_mb
    assert found.after_mb >= (wanted or 0)
    assert len(found.moves) <= budget.moves
    assert sum(m.seconds for m in found.moves) <= budget.seconds
    assert not any(instances[m.instance].pinned for m in found.moves)
    assert budget.cross_node or all(m.node == m.to_node for m in found.moves)


@given(clusters(), budgets)
def test_the_largest_block_never_shrinks(before: ClusterState, budget: Budget) -> None:
    """Without a wanted size, the largest free block grows or nothing is moved."""
    found = plan_defrag(before.capacities, before.stats, budget)
    if found is not None:
        usable = [d.available_mb for r in before.capacities for d in r.devices]
        assert found.after_mb > found.before_mb
        assert max(after_moves(found, before).values()) >= max(usable, default=0)


def fragmented(*sizes: tuple[int, ...]) -> ClusterState:
    """Return a node with a 300 MiB device for each tuple, and an instance of each size on it."""
    placed: list[InstanceView] = []
    for at, there in enumerate(sizes):
        for mb in there:
            made = instance(f"m{mb}", devices=(at,), mb=mb)
            placed.append(replace(made, id=InstanceId(f"{mb}@{at}")))
    fleet = node("n1", tuple(device(i, 300) for i in range(len(sizes))), tuple(placed))
    return ClusterState(capacities=(node_capacity(fleet),), now=NOW)


def test_two_halves_become_one_block() -> None:
    """Two halves of free memory become one block by the cheapest single move."""
    before = fragmented((100, 50), (150,))
    found = plan_defrag(before.capacities, {}, Budget(), wanted_mb=300)
    assert found is not None
    assert [(m.instance, m.to_device) for m in found.moves] == [("150@1", 0)]
    assert found.after_mb == 300


def test_an_existing_block_needs_no_move() -> None:
    """When the block exists already, the plan names it and moves nothing."""
    before = fragmented((100,), ())
    found = plan_defrag(before.capacities, {}, Budget(), wanted_mb=250)
    assert found == DefragPlan("n1", 1, 300, 300, ())


def test_the_quickest_of_equal_moves_is_taken() -> None:
    """Of two single moves that suffice, the one whose model loads faster is planned."""
    before = fragmented((100,), (100,))
    slow, quick = (instance(m, devices=(at,)) for at, m in enumerate(("slow", "quick")))
    fleet = node("n1", (device(0, 300), device(1, 300)), (slow, quick))
    before = replace(before, capacities=(node_capacity(fleet),))
    stats = {
        ModelId("slow"): ModelStats(reload_s=60),
        ModelId("quick"): ModelStats(reload_s=5),
    }
    found = plan_defrag(before.capacities, stats, Budget(), wanted_mb=300)
    assert found is not None
    assert [m.model for m in found.moves] == ["quick"]


def test_other_nodes_take_instances_only_when_allowed() -> None:
    """A block that needs memory on another node is planned only with `cross_node`."""
    one = node("n1", (device(0, 300),), (instance("a"),))
    two = node("n2", (device(0, 300),), (instance("b", "n2", mb=150),))
    capacities = cluster(one, two).capacities
    assert plan_defrag(capacities, {}, Budget(), wanted_mb=300) is None
    found = plan_defrag(capacities, {}, Budget(cross_node=True), wanted_mb=300)
    assert found is not None
    assert [(m.node, m.to_node) for m in found.moves] == [("n1", "n2")]
