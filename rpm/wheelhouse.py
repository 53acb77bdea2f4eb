"""Makes the wheelhouse: one archive of all wheels that the packages' environments are built from.

The locks in this directory say which, with their hashes; nothing else is ever installed, and the build itself needs no
network. Run by `make srpm`; needs pip and packaging.
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
"""Minor version of the oldest glibc 2 that packages are built for: Debian 12's, and less than Fedora's."""


def pinned(lock: Path, python: str) -> Iterator[str]:
    """The lines of a lock that are meant for a Python, such as "3.14", on Linux.

    pip judges markers by the interpreter that runs it, even when it fetches for another.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    target |= {"sys_platform": "linux", "platform_system": "Linux"}
    for entry in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        wanted, *hashes = entry.split(" --hash=")
        if not wanted.strip() or wanted.startswith("#"):
            continue
        requirement = Requirement(wanted.strip())
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            yield " --hash=".join([str(requirement), *(one.strip() for one in hashes)])


def fetch(lock: Path, python: str, into: Path) -> None:
    """Download what a lock pins; a file whose hash is not the lock's is refused."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(into)]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--implementation", "cp", "--python-version", python]
    command += [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(5, _NEWEST_GLIBC + 1)]
    command += ["--platform=manylinux2014_x86_64"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(pinned(lock, python)))
        wanted.flush()
        subprocess.run([*command, "--requirement", wanted.name], check=True)


def pack(wheels: Path, archive: Path) -> None:
    """Write an archive that is the same for the same wheels."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(archive, "w") as tar:
        for wheel in sorted(wheels.glob("*.whl")):
            tar.add(wheel, f"wheelhouse/{wheel.name}", filter=anonymous)


def main() -> None:
    """Fetch and pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("pythons", nargs="+", help="such as 3.14")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for python in given.pythons:
            for lock in LOCKS:
                fetch(lock, python, Path(directory))
        pack(Path(directory), given.archive)


if __name__ == "__main__":
    main()
