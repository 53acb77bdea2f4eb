"""The versions that the packages carry (rpm/*.lock) are versions that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).parents[2]
CARRIES = {
    "cortex": ("gateway", "tui", "otel"),
    "neuron": ("neuron",),
    "neuron-engine-embedded": ("neuron", "engine"),
}


def pinned(name: str) -> dict[str, set[str]]:
    """Versions in a lock by name; of some libraries there is one for older Pythons, too."""
    found: dict[str, set[str]] = {}
    lock = (REPO / "rpm" / f"{name}.lock").read_text(encoding="utf-8")
    for library, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, flags=re.MULTILINE):
        found.setdefault(library, set()).add(version)
    return found


@pytest.mark.parametrize("name", CARRIES)
def test_each_package_carries_what_the_code_asks_for(name: str):
    """A dependency that is new, or whose bounds moved, needs `make lock`."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in CARRIES[name]:
        wanted += project["optional-dependencies"][extra]
    carried = pinned(name)

    for requirement in map(Requirement, wanted):
        versions = carried.get(requirement.name, {"none"})
        assert all(map(requirement.specifier.contains, versions)), (str(requirement), versions)


def test_the_engine_goes_with_its_neuron():
    """It is installed on top of the neuron's environment, where nothing may change."""
    neuron, engine = pinned("neuron"), pinned("neuron-engine-embedded")

    assert {name for name in neuron.keys() & engine.keys() if neuron[name] != engine[name]} == set()
