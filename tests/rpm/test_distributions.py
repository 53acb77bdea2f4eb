"""The wheel and the sdist built by `make dist`: their contents, and that the build is reproducible."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cortex_common import __version__

DIST = Path(__file__).parents[2] / "dist"
WHEEL = DIST / f"cortex_gpu-{__version__}-py3-none-any.whl"
SDIST = DIST / f"cortex_gpu-{__version__}.tar.gz"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the unpacked sdist."""
    directory = tmp_path_factory.mktemp("sdist")
    with tarfile.open(SDIST) as archive:
        archive.extractall(directory, filter="data")
    (root,) = directory.iterdir()
    return root


def test_wheel_contents():
    """The wheel has the packages, the style sheet of the terminal UI, type markers and the license, but no tests."""
    with zipfile.ZipFile(WHEEL) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"cortex_gpu-{__version__}.dist-info/METADATA").decode()
    packages = {"cortex_cli", "cortex_server", "neuron_server", "cortex_common", "cortex_http"}

    assert {name.split("/")[0] for name in names} == {
        *packages,
        f"cortex_gpu-{__version__}.dist-info",
    }
    assert {f"{package}/py.typed" for package in packages} <= names
    assert "cortex_cli/tui/cortex.tcss" in names
    assert f"cortex_gpu-{__version__}.dist-info/licenses/LICENSE" in names
    assert [name for name in names if "test" in name.split("/")[-1]] == []
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_sdist_contents(unpacked: Path):
    """The sdist has tests, documentation, example settings, and the spec with all files that it installs."""
    spec = (unpacked / "rpm" / "cortex.spec").read_text(encoding="utf-8")

    for name in ("tests/unit", "docs", "config/models.toml", "Makefile", "LICENSE", "CHANGELOG.md"):
        assert (unpacked / name).exists(), name
    for name in ("cortex.lock", "neuron.lock", "neuron-engine-embedded.lock", "build.lock"):
        assert f"rpm/{name}" in spec
        assert (unpacked / "rpm" / name).is_file()
    assert not any((unpacked / name).exists() for name in (".git", ".venv", "build", "dist"))


def test_build_from_sdist_is_reproducible(unpacked: Path, tmp_path: Path):
    """In another directory, with other file times and another umask, the result is the same."""
    with tarfile.open(SDIST) as archive:
        epoch = int(archive.getmembers()[0].mtime)
    for path in unpacked.rglob("*"):
        os.utime(path, (1, 1))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", tmp_path],
        cwd=unpacked,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
        umask=0o077,
        check=True,
        capture_output=True,
    )

    assert digest(tmp_path / WHEEL.name) == digest(WHEEL)
    assert digest(tmp_path / SDIST.name) == digest(SDIST)
