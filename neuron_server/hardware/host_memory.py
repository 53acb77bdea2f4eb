"""The host's memory: what the kernel reports, limited by the control groups that this process is in.

In a container, the kernel reports the memory of the whole machine, while the container's limit decides when the OOM
killer acts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of memory in total, and available without swapping."""

    total: int
    available: int


def read_host_memory(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> HostMemory:
    """Return the host's memory.

    Args:
        cgroups: where the control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for directory, limit_name, usage_name in _groups(cgroups, membership):
        limit, used = _number(directory / limit_name), _number(directory / usage_name)
        if limit is not None and limit < total:
            cached = _inactive_cache(directory / "memory.stat")
            total = min(total, limit)
            available = min(available, max(0, limit - max(0, (used or 0) - cached)))
    return HostMemory(total, available)


def _groups(cgroups: Path, membership: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the memory control groups of this process up to the root, with the names of their limit and usage."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        directory = root / path.lstrip("/")
        while directory.is_relative_to(root):
            yield directory, *names
            directory = directory.parent


def _number(path: Path) -> int | None:
    """Return the number in a file; None for "max", and for a file that is missing."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _inactive_cache(path: Path) -> int:
    """Return the bytes of page cache that the kernel reclaims before it kills a process."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    counters = dict(line.split(" ", 1) for line in lines if " " in line)
    value = counters.get("inactive_file") or counters.get("total_inactive_file") or "0"
    return int(value) if value.isdecimal() else 0
