"""A cgroup (v2) per engine, below the one that systemd delegates to the neuron's unit.

A process can leave its process group, its session and its parent, but not its cgroup, so all processes that an engine
started can be found and killed there. Below the delegated cgroup the neuron itself runs in `neuron` and each engine in
`engines/<instance>`, because a cgroup that contains processes can't distribute resources to child cgroups.

References: cgroups(7), "Delegating a hierarchy"; systemd's CGROUP_DELEGATION.md: a delegated cgroup carries the
extended attribute `user.delegate` or `trusted.delegate` with the value 1. cgroup.kill requires Linux 5.14.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from cortex_common.errors import ConfigError

_NEURON_LEAF = "neuron"
_ENGINES = "engines"
_DELEGATE_XATTRS = ("user.delegate", "trusted.delegate")


class EngineCgroup:
    """The cgroup of one engine.

    Args:
        path: its directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> int:
        """Create the cgroup, without leftover processes; return a descriptor of its cgroup.procs for writing.

        Raises:
            OSError: it can't be created.
        """
        self.kill()
        self._path.mkdir(parents=True, exist_ok=True)
        return os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def pids(self) -> frozenset[int]:
        """Return its processes without zombies; empty if the cgroup does not exist."""
        pids: set[int] = set()
        for directory in _directories(self._path):
            with contextlib.suppress(OSError):
                pids.update(map(int, (directory / "cgroup.procs").read_bytes().split()))
        return frozenset(pids)

    def kill(self) -> None:
        """Kill all its processes, including those being forked."""
        try:
            (self._path / "cgroup.kill").write_bytes(b"1")
        except OSError:  # removed, or a kernel without cgroup.kill
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove it and all cgroups below it; those that contain processes stay."""
        for directory in reversed(_directories(self._path)):
            with contextlib.suppress(OSError):
                directory.rmdir()


class Cgroups:
    """Creates and lists the cgroups of this neuron's engines.

    Args:
        root: directory of the delegated cgroup.

    Raises:
        OSError: it can't be used.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "cgroup.procs").exists():
            raise FileNotFoundError(errno.ENOENT, "not a cgroup v2 directory")
        self.root = root
        self._engines = root / _ENGINES
        self._engines.mkdir(exist_ok=True)
        own = own_cgroup()
        if own is not None and own.samefile(root):
            (root / _NEURON_LEAF).mkdir(exist_ok=True)
            (root / _NEURON_LEAF / "cgroup.procs").write_bytes(b"0")

    def for_instance(self, instance: str) -> EngineCgroup:
        """Return the cgroup of an instance's engine, created or not."""
        return EngineCgroup(self._engines / instance)

    def existing(self) -> Iterator[tuple[str, EngineCgroup]]:
        """Yield all existing engine cgroups with their instance ids."""
        for path in self._engines.iterdir():
            if path.is_dir():
                yield path.name, EngineCgroup(path)


def find_cgroups(configured: Path | None) -> Cgroups | None:
    """Return the cgroups to run engines in; None if no cgroup is delegated to this process.

    Args:
        configured: the cgroup that the operator configured, if any.

    Raises:
        ConfigError: the configured cgroup can't be used.
    """
    if configured is None:
        root = find_delegated(own_cgroup())
        with contextlib.suppress(OSError):
            return None if root is None else Cgroups(root)
        return None
    try:
        return Cgroups(configured)
    except OSError as error:
        raise ConfigError(
            f"can't use the cgroup {configured}: {error.strerror or error}",
            hints=("make it writable for the neuron's user, or remove cgroup from [neuron]",),
        ) from error


def find_delegated(own: Path | None) -> Path | None:
    """Return the cgroup delegated to a process in `own`: that cgroup, or its parent if `own` is a leaf of it."""
    candidates = () if own is None else (own, own.parent)
    return next((path for path in candidates if _is_delegated(path)), None)


def own_cgroup() -> Path | None:
    """Return the directory of this process's cgroup; None if no cgroup v2 hierarchy that contains it is mounted."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    mount = _cgroup_mount()
    if own is None or mount is None:
        return None
    mounted_root, mount_point = mount
    path = mount_point / os.path.relpath(own, mounted_root)
    return path if path.is_dir() else None


def _cgroup_mount() -> tuple[str, Path] | None:
    """Return the root of the mounted cgroup v2 hierarchy and its mount point."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return fields[3], Path(fields[4])
    return None


def _is_delegated(path: Path) -> bool:
    for name in _DELEGATE_XATTRS:
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _directories(path: Path) -> list[Path]:
    """Return a cgroup and all below it, parents first; empty if it does not exist."""
    return [Path(directory) for directory, _, _ in os.walk(path)]
