"""What the command asks of a fleet of which servers of others are a part."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_fleet import GEMMA, LLAMA, busy_fleet

from cortex_cli.bulk import ANY_NODE, LOADED, names_meant
from cortex_cli.commands.version import versions
from cortex_common.errors import NotFound
from cortex_common.schema.fleet import FleetSnapshot, NodeView

FLEET = FleetSnapshot(
    1,
    0.0,
    (
        NodeView("gpu1", "http://gpu1"),
        NodeView("gpu2", "http://gpu2"),
        NodeView("gpu-cloud", "http://cloud", upstream=True),
    ),
)


def test_a_pattern_means_nodes_that_can_be_cordoned_and_drained() -> None:
    """An upstream among them is not asked for what it would refuse; by its name it is, and says why."""
    assert names_meant(FLEET, ["gpu*", "gpu1"], ANY_NODE) == ["gpu1", "gpu2"]
    assert names_meant(FLEET, ["gpu-cloud"], ANY_NODE) == ["gpu-cloud"]
    with pytest.raises(NotFound, match="no node matches"):
        names_meant(FLEET, ["cpu*"], ANY_NODE)


def test_models_of_others_are_not_meant_where_something_is_to_end() -> None:
    """`unload '*'` passes over what a server of others has, where cortex ends nothing, and does not fail for it."""
    fleet = busy_fleet()
    beast, mule, attic = fleet.nodes
    qwen, gemma = beast.instances
    cloud = replace(attic, name="cloud", upstream=True, state=beast.state, instances=(qwen,))
    shared = replace(fleet, nodes=(replace(beast, instances=(gemma,)), mule, cloud))
    assert names_meant(shared, ["*"], LOADED) == [GEMMA, LLAMA]


def test_servers_of_others_have_no_version_to_compare() -> None:
    """`cortex version` tells of neurons; an upstream has none, and so differs from nothing."""
    fleet = busy_fleet()
    beast, _, attic = fleet.nodes
    shared = replace(fleet, nodes=(beast, replace(attic, upstream=True)))
    assert [name for part, name, _ in versions(shared, None) if part == "node"] == ["beast"]
