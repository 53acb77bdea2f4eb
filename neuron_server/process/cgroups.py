"""A cgroup (v2) for each engine, below the one that systemd delegates to the neuron's unit.

A process can leave its group, its session and its parent, but not its cgroup: what an engine started is found and
killed there, whatever it did to hide. Below the delegated cgroup the neuron itself lives in `neuron` and each engine in
`engines/<instance>`, for a cgroup that has processes of its own can't share resources out among its children.

Facts: cgroups(7), "Delegating a hierarchy"; systemd's CGROUP_DELEGATION.md: a delegated cgroup carries the extended
attribute `user.delegate` or `trusted.delegate` with the value 1. cgroup.kill came with Linux 5.14.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from cortex_common.errors import ConfigError

_OWN_LEAF = "neuron"
_ENGINES = "engines"
_DELEGATED = ("user.delegate", "trusted.delegate")


class EngineCgroup:
    """The cgroup of one engine.

    Args:
        path: its directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> int:
        """Make it, empty of whatever an earlier engine of the instance left; returns the file to write to.

        Raises:
            OSError: it can't be made.
        """
        self.kill()
        self._path.mkdir(parents=True, exist_ok=True)
        return os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def pids(self) -> frozenset[int]:
        """Its processes, zombies left out; none once it is gone."""
        found: set[int] = set()
        for directory in _directories(self._path):
            with contextlib.suppress(OSError):
                found.update(map(int, (directory / "cgroup.procs").read_bytes().split()))
        return frozenset(found)

    def kill(self) -> None:
        """Kill all that is in it, also what is being forked."""
        try:
            (self._path / "cgroup.kill").write_bytes(b"1")
        except OSError:  # gone, or a kernel without cgroup.kill
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove it and what the engine made below it; one that is not empty stays."""
        for directory in reversed(_directories(self._path)):
            with contextlib.suppress(OSError):
                directory.rmdir()


class Cgroups:
    """The cgroups of this neuron's engines.

    Args:
        root: the delegated cgroup's directory.

    Raises:
        OSError: it can't be written to.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "cgroup.procs").exists():
            raise FileNotFoundError(errno.ENOENT, "there is no cgroup of version 2")
        self.root = root
        self._engines = root / _ENGINES
        self._engines.mkdir(exist_ok=True)
        own = own_cgroup()
        if own is not None and own.samefile(root):
            (root / _OWN_LEAF).mkdir(exist_ok=True)
            (root / _OWN_LEAF / "cgroup.procs").write_bytes(b"0")

    def of(self, instance: str) -> EngineCgroup:
        """An engine's, whether or not it was made."""
        return EngineCgroup(self._engines / instance)

    def left(self) -> Iterator[tuple[str, EngineCgroup]]:
        """All that exist, by instance."""
        for path in self._engines.iterdir():
            if path.is_dir():
                yield path.name, EngineCgroup(path)


def find(wanted: Path | None) -> Cgroups | None:
    """The cgroups to put engines into; None where there is no delegated one.

    Args:
        wanted: the operator's own choice.

    Raises:
        ConfigError: the operator's choice can't be used.
    """
    if wanted is None:
        root = delegated(own_cgroup())
        with contextlib.suppress(OSError):
            return None if root is None else Cgroups(root)
        return None
    try:
        return Cgroups(wanted)
    except OSError as failed:
        raise ConfigError(
            f"can't use the cgroup {wanted}: {failed.strerror or failed}",
            hints=("make it writable for the neuron's user, or leave cgroup in [neuron] out",),
        ) from failed


def delegated(own: Path | None) -> Path | None:
    """The cgroup that was delegated to a process in `own`: that one, or the one above where it was put into a leaf."""
    candidates = () if own is None else (own, own.parent)
    return next((path for path in candidates if _is_delegated(path)), None)


def own_cgroup() -> Path | None:
    """The directory of this process's cgroup; None where no hierarchy of version 2 is mounted or it is not in sight."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    mount = _mount()
    if own is None or mount is None:
        return None
    top, point = mount
    path = point / os.path.relpath(own, top)
    return path if path.is_dir() else None


def _mount() -> tuple[str, Path] | None:
    """What of the hierarchy is mounted, and where."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return fields[3], Path(fields[4])
    return None


def _is_delegated(path: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _directories(path: Path) -> list[Path]:
    """A cgroup and all below it, each before what is below it; empty when it is gone."""
    return [Path(found) for found, _, _ in os.walk(path)]
