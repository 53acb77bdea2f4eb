"""The version is defined in one place, and all copies of it agree."""

from __future__ import annotations

import re
from pathlib import Path

from cortex_common import __version__

REPO = Path(__file__).parents[2]


def test_packages_have_the_same_version():
    """The version of the spec and of the latest entry in its changelog equal the version of the code."""
    spec = (REPO / "rpm" / "cortex.spec").read_text(encoding="utf-8")
    (version,) = re.findall(r"^Version: +(\S+)$", spec, flags=re.MULTILINE)
    latest = re.search(r"^%changelog\n\* .* - (\S+)-\d+$", spec, flags=re.MULTILINE)

    assert version == __version__
    assert latest is not None
    assert latest[1] == __version__


def test_changelog_has_the_version():
    """The first entry is the current version or Unreleased."""
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)

    assert headings[0] in {"Unreleased", __version__}
    assert [name for name in headings[1:] if name == "Unreleased"] == []
    assert len(headings) == 1 or __version__ in headings
