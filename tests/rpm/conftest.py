from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RPMS = Path(__file__).parents[2] / "build" / "rpm" / "RPMS"


@pytest.fixture(autouse=True, scope="session")
def _asked_for():
    """These take minutes with the build before them: `make test-rpm` runs them."""
    if not os.environ.get("CORTEX_PACKAGES"):
        pytest.skip("looks at packages: make test-rpm")
    if shutil.which("rpm2cpio") is None:
        pytest.skip("needs rpm2cpio (apt-get install rpm)")


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The binary packages by name."""
    found = {path.name.rsplit("-", 2)[0]: path for path in RPMS.rglob("*.rpm")}
    assert found, "nothing was built: make rpm"
    return found


@pytest.fixture(scope="session")
def root(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory with all packages unpacked in it."""
    into = tmp_path_factory.mktemp("host") / "root"
    into.mkdir()
    for package in packages.values():
        subprocess.run(
            f"rpm2cpio '{package}' | cpio --quiet -idm --no-absolute-filenames",
            shell=True,
            cwd=into,
            check=True,
        )
    return into
