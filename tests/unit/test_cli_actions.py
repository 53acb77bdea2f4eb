"""What patterns on the command line stand for."""

from __future__ import annotations

import pytest

from cortex_cli.actions import ANY_NODE, names_meant
from cortex_common.errors import NotFound
from cortex_common.fleet import FleetSnapshot, NodeView

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
