"""Creates the wheelhouse: an archive of all wheels that the environments of the packages are built from.

The lock files in this directory list them with their hashes. Nothing else is installed, and the build itself needs no
network. Run by `make srpm`; requires pip and packaging.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = sorted(Path(__file__).parent.glob("*.lock"))
_NEWEST_GLIBC = 36
"""Minor version of the oldest glibc 2 that packages are built for: that of Debian 12, older than Fedora's."""


def pinned(lock: Path, python: str) -> Iterator[str]:
    """Yield the lines of a lock file that apply to a Python version, such as "3.14", on Linux.

    pip evaluates markers for the interpreter that runs it, even when it downloads for another one.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    target |= {"sys_platform": "linux", "platform_system": "Linux"}
    for entry in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        line, *hashes = entry.split(" --hash=")
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            yield " --hash=".join([str(requirement), *(digest.strip() for digest in hashes)])


def fetch(lock: Path, python: str, into: Path) -> None:
    """Download the wheels of a lock file; pip rejects files with another hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(into)]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--implementation", "cp", "--python-version", python]
    command += [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(5, _NEWEST_GLIBC + 1)]
    command += ["--platform=manylinux2014_x86_64"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(pinned(lock, python)))
        requirements.flush()
        subprocess.run([*command, "--requirement", requirements.name], check=True)


def pack(wheels: Path, archive: Path) -> None:
    """Write a reproducible archive of the wheels."""

    def normalize(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(archive, "w") as tar:
        for wheel in sorted(wheels.glob("*.whl")):
            tar.add(wheel, f"wheelhouse/{wheel.name}", filter=normalize)


def main() -> None:
    """Download and pack the wheels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("pythons", nargs="+", help="such as 3.14")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for python in args.pythons:
            for lock in LOCKS:
                fetch(lock, python, Path(directory))
        pack(Path(directory), args.archive)


if __name__ == "__main__":
    main()
