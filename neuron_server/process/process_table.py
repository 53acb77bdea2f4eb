"""The host's process table as /proc shows it at one moment: trees, groups and marks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the table.

    Attributes:
        group: process group; an engine leads its own.
        started_ticks: clock ticks after boot at which it started; pid and this together never repeat in a boot.
        rss_bytes: resident memory.
        zombie: it has ended and only waits to be reaped.
    """

    pid: int
    parent: int
    group: int
    started_ticks: int
    rss_bytes: int
    zombie: bool


def oom_kills() -> int:
    """Processes that the kernel has ended for want of memory since boot (Linux 4.13; 0 before)."""
    lines = (_PROC / "vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line[9:]) for line in lines if line.startswith("oom_kill ")), 0)


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """All processes at one moment."""

    by_pid: Mapping[int, Process]

    def tree(self, head: int) -> frozenset[int]:
        """The pids of a process, its descendants, and its process group with theirs.

        The group is what remains to be found when the head died and init became its children's parent.
        """
        children: dict[int, list[int]] = {}
        for process in self.by_pid.values():
            children.setdefault(process.parent, []).append(process.pid)
        todo = [p.pid for p in self.by_pid.values() if head in {p.pid, p.group}]
        found: set[int] = set()
        while todo:
            pid = todo.pop()
            if pid not in found:
                found.add(pid)
                todo.extend(children.get(pid, ()))
        return frozenset(pid for pid in found if not self.by_pid[pid].zombie)

    def left_of(self, head: int, started_ticks: int) -> frozenset[int]:
        """What lives of the tree that a head led, itself ended or not; nothing once its pid is somebody else's.

        The kernel gives a pid to nobody while a process group of that number has members.
        """
        now = self.by_pid.get(head)
        mine = now is None or now.started_ticks == started_ticks
        return self.tree(head) if mine else frozenset()

    def rss_mb(self, pids: frozenset[int]) -> int:
        """Resident MiB of some processes together."""
        return sum(self.by_pid[p].rss_bytes for p in pids if p in self.by_pid) // (1024 * 1024)

    def is_same(self, pid: int, started_ticks: int) -> bool:
        """Whether the process that had this pid then still lives."""
        process = self.by_pid.get(pid)
        return process is not None and process.started_ticks == started_ticks and not process.zombie


TreeOf = Callable[[ProcessTable], frozenset[int]]
"""Finds the processes of one engine in a table."""


def read_table() -> ProcessTable:
    """Read /proc once; a few milliseconds on a host with hundreds of processes."""
    return ProcessTable({process.pid: process for process in _read()})


def read_process(pid: int) -> Process | None:
    """One process, or None when there is none of that pid."""
    try:
        # No Path: a thousand of them at each reading of the devices are a waste.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        started_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE,
        zombie=fields[0] in b"ZX",
    )


def _read() -> Iterator[Process]:
    for name in os.listdir(_PROC):  # noqa: PTH208 - thousands of Path objects a second are a waste
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def marked(table: ProcessTable, mark: str) -> frozenset[int]:
    """The pids whose environment carries `mark` ("NAME=value"); of processes that this user may look at."""
    wanted = mark.encode()
    return frozenset(pid for pid in table.by_pid if wanted in environment(pid))


def environment(pid: int) -> tuple[bytes, ...]:
    """The environment that a process was started with; empty when it is gone or not ours to read."""
    try:
        return tuple((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ()


def boot_id() -> str:
    """Names this boot of the kernel; pids mean nothing beyond it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def listening_pids(port: int, candidates: frozenset[int]) -> frozenset[int]:
    """Which of some processes hold a listening TCP socket on a port."""
    inodes = _listening_inodes(port)
    return frozenset(pid for pid in candidates if inodes & _socket_inodes(pid))


def _listening_inodes(port: int) -> set[str]:
    found: set[str] = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(fields[9])
    return found


def _socket_inodes(pid: int) -> set[str]:
    found: set[str] = set()
    try:
        for entry in (_PROC / str(pid) / "fd").iterdir():
            target = os.readlink(entry)  # noqa: PTH115 - "socket:[1]" is no path
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found
    return found
