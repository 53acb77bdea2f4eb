"""Commands on a fleet with external upstreams."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_fleet import GEMMA, LLAMA, busy_fleet

from cortex_cli.bulk import LOADED_MODELS, NODES, resolve_names
from cortex_cli.commands.version import list_versions
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


def test_patterns_do_not_match_upstreams() -> None:
    """A pattern of nodes skips upstreams, which can't be cordoned; a plain name is passed to the gateway."""
    assert resolve_names(FLEET, ["gpu*", "gpu1"], NODES) == ["gpu1", "gpu2"]
    assert resolve_names(FLEET, ["gpu-cloud"], NODES) == ["gpu-cloud"]
    with pytest.raises(NotFound, match="no node matches"):
        resolve_names(FLEET, ["cpu*"], NODES)


def test_unload_patterns_skip_models_of_upstreams() -> None:
    """`unload '*'` skips models that only an upstream serves."""
    fleet = busy_fleet()
    beast, mule, attic = fleet.nodes
    qwen, gemma = beast.instances
    cloud = replace(attic, name="cloud", upstream=True, state=beast.state, instances=(qwen,))
    shared = replace(fleet, nodes=(replace(beast, instances=(gemma,)), mule, cloud))
    assert resolve_names(shared, ["*"], LOADED_MODELS) == [GEMMA, LLAMA]


def test_upstreams_have_no_version() -> None:
    """`cortex version` lists neurons only, because upstreams report no version."""
    fleet = busy_fleet()
    beast, _, attic = fleet.nodes
    shared = replace(fleet, nodes=(beast, replace(attic, upstream=True)))
    assert [name for part, name, _ in list_versions(shared, None) if part == "node"] == ["beast"]
