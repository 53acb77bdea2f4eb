from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RPMS = Path(__file__).parents[2] / "build" / "rpm" / "RPMS"


@pytest.fixture(autouse=True, scope="session")
def _require_packages():
    """Skip unless run by `make test-rpm`, because the build takes minutes."""
    if not os.environ.get("CORTEX_PACKAGES"):
        pytest.skip("tests packages; run make test-rpm")
    if shutil.which("rpm2cpio") is None:
        pytest.skip("needs rpm2cpio (apt-get install rpm)")


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """Return the binary packages by name."""
    packages = {path.name.rsplit("-", 2)[0]: path for path in RPMS.rglob("*.rpm")}
    assert packages, "no packages; run make rpm"
    return packages


@pytest.fixture(scope="session")
def root(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in which all packages are unpacked."""
    root = tmp_path_factory.mktemp("host") / "root"
    root.mkdir()
    for package in packages.values():
        subprocess.run(
            f"rpm2cpio '{package}' | cpio --quiet -idm --no-absolute-filenames",
            shell=True,
            cwd=root,
            check=True,
        )
    return root
