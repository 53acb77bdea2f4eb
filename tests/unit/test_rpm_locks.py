"""The dependency versions of the packages (rpm/*.lock) match pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).parents[2]
EXTRAS = {
    "cortex": ("gateway", "tui", "otel"),
    "neuron": ("neuron",),
    "neuron-engine-embedded": ("neuron", "engine"),
}


def pinned(name: str) -> dict[str, set[str]]:
    """Return the versions in a lock file by name; some libraries have another version for older Pythons."""
    versions: dict[str, set[str]] = {}
    lock = (REPO / "rpm" / f"{name}.lock").read_text(encoding="utf-8")
    for library, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, flags=re.MULTILINE):
        versions.setdefault(library, set()).add(version)
    return versions


@pytest.mark.parametrize("name", EXTRAS)
def test_locked_versions_satisfy_the_requirements(name: str):
    """After adding a dependency or changing its bounds, run `make lock`."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in EXTRAS[name]:
        requirements += project["optional-dependencies"][extra]
    locked = pinned(name)

    for requirement in map(Requirement, requirements):
        versions = locked.get(requirement.name, {"none"})
        assert all(map(requirement.specifier.contains, versions)), (str(requirement), versions)


def test_engine_and_neuron_have_the_same_versions():
    """The engine is installed on top of the neuron's environment without changing it."""
    neuron, engine = pinned("neuron"), pinned("neuron-engine-embedded")

    assert {name for name in neuron.keys() & engine.keys() if neuron[name] != engine[name]} == set()
