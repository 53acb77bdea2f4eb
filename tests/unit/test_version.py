"""The version stands in one place; what must repeat it agrees."""

from __future__ import annotations

import re
from pathlib import Path

from cortex_common import __version__

REPO = Path(__file__).parents[2]


def test_the_packages_have_the_same_version():
    """The spec's Version and the newest entry of its changelog are the code's."""
    spec = (REPO / "rpm" / "cortex.spec").read_text(encoding="utf-8")
    (version,) = re.findall(r"^Version: +(\S+)$", spec, flags=re.MULTILINE)
    newest = re.search(r"^%changelog\n\* .* - (\S+)-\d+$", spec, flags=re.MULTILINE)

    assert version == __version__
    assert newest is not None
    assert newest[1] == __version__


def test_the_changelog_knows_the_version():
    """It has the version's entry, or it is still being written."""
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)

    assert headings[0] in {"Unreleased", __version__}
    assert [name for name in headings[1:] if name == "Unreleased"] == []
    assert len(headings) == 1 or __version__ in headings
