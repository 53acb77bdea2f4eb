"""One engine process and all that it started, to an end that leaves nothing.

Engines are trees: workers of tensor parallelism outlive their head, a crashed head leaves children to init. So every
engine has a cgroup where the neuron may make some, and carries a mark in its environment, which its children inherit.
Stopping it means that no process of its cgroup, its group, its tree or its mark is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from neuron_server.process.cgroups import EngineCgroup
from neuron_server.process.pidfd import pidfd_open, pidfd_send_signal
from neuron_server.process.process_table import (
    ProcessTable,
    marked,
    oom_kills,
    read_process,
    read_table,
)

SWEEP_EVERY_S = 0.05
SWEEP_LIMIT_S = 5.0


class EngineProcess:
    """A running engine, started by this neuron or adopted from the one before.

    Args:
        mark: "NAME=value" in the environment of all its processes.
        child: set where this neuron started it.
        cgroup: set where it has one.

    Attributes:
        pid: of its head, which is also its process group and session.
        started_ticks: see `processes.Process`.
        status: how it ended, as subprocess tells it; None while it runs, and for an adopted one.
        oom_kills: processes of this host that the kernel ended for want of memory meanwhile.
    """

    def __init__(
        self,
        pid: int,
        started_ticks: int,
        mark: str,
        *,
        child: subprocess.Popen[bytes] | None = None,
        cgroup: EngineCgroup | None = None,
    ) -> None:
        self.pid = pid
        self.started_ticks = started_ticks
        self.status: int | None = None
        self.oom_kills = 0
        self._oom_kills_before = oom_kills()
        self._mark = mark
        self._child = child
        self._cgroup = cgroup
        self._ended = asyncio.Event()
        self._watch()

    def pids(self, table: ProcessTable) -> frozenset[int]:
        """Its living processes: all of its cgroup, and those of its tree that never had one."""
        tree = table.tree(self.pid)
        return tree if self._cgroup is None else tree | self._cgroup.pids()

    @property
    def alive(self) -> bool:
        """Whether the head runs."""
        return not self._ended.is_set()

    async def wait(self) -> int | None:
        """Wait for the head's end."""
        await self._ended.wait()
        return self.status

    async def stop(self, with_signal: signal.Signals, within_s: float) -> None:
        """Ask the head to end, kill what has not ended in time, and wait until nothing is left.

        Its workers are not asked: it ends them itself. Told at once with it, SGLang's scheduler dies with all that it
        holds, and its head sees a crash, for which it dumps stacks and cards before it ends.

        Args:
            with_signal: what asks the engine to end.
            within_s: seconds until it is killed.
        """
        known = self.pids(read_table())
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(self._pidfd, with_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), within_s)
        await self._sweep(known)

    def let_go(self) -> None:
        """Stop watching an engine that is to outlive this neuron."""
        if self._child is not None and self.alive:
            self._child.returncode = 0  # tells Popen that nobody will wait for it here
        self._unwatch()

    def _watch(self) -> None:
        self._pidfd: int | None = pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _on_end(self) -> None:
        self._unwatch()
        if self._child is not None:
            self.status = self._child.wait()
        self.oom_kills = oom_kills() - self._oom_kills_before
        self._ended.set()

    async def _sweep(self, known: frozenset[int]) -> None:
        """Kill until neither cgroup nor group nor tree nor mark has a living process."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SWEEP_LIMIT_S
        starts = {pid: p.started_ticks for pid in known if (p := read_process(pid)) is not None}
        while loop.time() < deadline:
            if self._cgroup is not None:
                self._cgroup.kill()
            table = read_table()
            left = self.pids(table) | marked(table, self._mark)
            left |= {pid for pid, ticks in starts.items() if table.is_same(pid, ticks)}
            left = frozenset(p for p in left if p in table.by_pid and not table.by_pid[p].zombie)
            if not left and not self.alive:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(SWEEP_EVERY_S)
        if self._cgroup is not None:
            self._cgroup.remove()
