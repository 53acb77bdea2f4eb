"""The host's process table, read from /proc: process trees, process groups and environment markers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        parent: pid of its parent.
        group: its process group; an engine leads its own.
        started_ticks: start time in clock ticks since boot; pid and start time are unique within a boot.
        rss_bytes: resident memory.
        cpu_ticks: CPU time that it has used, in clock ticks.
        zombie: it has ended and has not been reaped.
    """

    pid: int
    parent: int
    group: int
    started_ticks: int
    rss_bytes: int
    zombie: bool
    cpu_ticks: int = 0


def oom_kills() -> int:
    """Return the number of processes that the OOM killer has killed since boot (Linux 4.13; 0 before)."""
    lines = (_PROC / "vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line[9:]) for line in lines if line.startswith("oom_kill ")), 0)


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """All processes at one moment."""

    by_pid: Mapping[int, Process]

    def tree(self, leader: int) -> frozenset[int]:
        """Return the live pids of a process, of its process group, and of all their descendants.

        The process group still identifies the children of a leader that died, which were reparented to init.
        """
        children: dict[int, list[int]] = {}
        for process in self.by_pid.values():
            children.setdefault(process.parent, []).append(process.pid)
        pending = [p.pid for p in self.by_pid.values() if leader in {p.pid, p.group}]
        pids: set[int] = set()
        while pending:
            pid = pending.pop()
            if pid not in pids:
                pids.add(pid)
                pending.extend(children.get(pid, ()))
        return frozenset(pid for pid in pids if not self.by_pid[pid].zombie)

    def remaining_tree(self, leader: int, started_ticks: int) -> frozenset[int]:
        """Return the live pids of a leader's tree, whether or not the leader has ended; empty if its pid was reused.

        The kernel does not reuse a pid while a process group with that id has members.
        """
        current = self.by_pid.get(leader)
        same = current is None or current.started_ticks == started_ticks
        return self.tree(leader) if same else frozenset()

    def rss_mb(self, pids: frozenset[int]) -> int:
        """Return the resident memory of some processes in MiB."""
        return sum(self.by_pid[p].rss_bytes for p in pids if p in self.by_pid) // (1024 * 1024)

    def cpu_seconds(self, pids: frozenset[int]) -> float:
        """Return the CPU time that some processes have used."""
        return sum(self.by_pid[p].cpu_ticks for p in pids if p in self.by_pid) / _TICKS_PER_S

    def is_same(self, pid: int, started_ticks: int) -> bool:
        """Return whether a process with this pid and start time is still running."""
        process = self.by_pid.get(pid)
        return process is not None and process.started_ticks == started_ticks and not process.zombie


ProcessFinder = Callable[[ProcessTable], frozenset[int]]
"""Finds the pids of one engine in a process table."""


def read_table() -> ProcessTable:
    """Read all of /proc; takes a few milliseconds on a host with hundreds of processes."""
    return ProcessTable({process.pid: process for process in _read_all()})


def read_process(pid: int) -> Process | None:
    """Return a process; None if there is none with that pid."""
    try:
        # No Path: this is called about a thousand times per device reading.
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
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        zombie=fields[0] in b"ZX",
        cpu_ticks=int(fields[11]) + int(fields[12]),
    )


def _read_all() -> Iterator[Process]:
    for name in os.listdir(_PROC):  # noqa: PTH208 - avoids a Path per process
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def pids_with_marker(table: ProcessTable, marker: str) -> frozenset[int]:
    """Return the pids whose environment, as far as this user can read it, contains `marker` ("NAME=value")."""
    variable = marker.encode()
    return frozenset(pid for pid in table.by_pid if variable in environment(pid))


def environment(pid: int) -> tuple[bytes, ...]:
    """Return the environment that a process was started with; empty if it has ended or can't be read."""
    try:
        return tuple((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ()


def boot_id() -> str:
    """Return the id of the current boot; pids are meaningful only within it."""
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def listening_pids(port: int, candidates: frozenset[int]) -> frozenset[int]:
    """Return the candidates that hold a listening TCP socket on a port."""
    inodes = _listening_inodes(port)
    return frozenset(pid for pid in candidates if inodes & _socket_inodes(pid))


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(fields[9])
    return inodes


def _socket_inodes(pid: int) -> set[str]:
    inodes: set[str] = set()
    try:
        for entry in (_PROC / str(pid) / "fd").iterdir():
            target = os.readlink(entry)  # noqa: PTH115 - "socket:[1]" is not a path
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return inodes
    return inodes
