"""The architecture page names only files and folders that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+(?:\.py)?)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_the_path_exists(path: str) -> None:
    """A path is relative to the repository, or to `cortex_server` where the text is about the gateway."""
    assert (ROOT / path).exists() or (ROOT / "cortex_server" / path).exists()


def test_every_package_is_on_the_page() -> None:
    """No folder of the gateway or the neuron is missing from the tables of packages."""
    folders = {
        f"{package}/{folder.name}"
        for package in ("cortex_server", "neuron_server")
        for folder in (ROOT / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert {folder for folder in folders if f"| `{folder}` |" not in PAGE} == set()
