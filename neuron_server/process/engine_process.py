"""An engine process with all its descendants.

Engines are process trees: tensor-parallel workers outlive their leader, and the children of a crashed leader are
reparented to init. Each engine therefore runs in a cgroup of its own, if the neuron is allowed to create cgroups, and
carries a marker in its environment, which its descendants inherit. Stopping an engine means that no process is left in
its cgroup, its process group, its process tree, or with its marker.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess

from neuron_server.process.cgroups import EngineCgroup
from neuron_server.process.pidfd import pidfd_open, pidfd_send_signal
from neuron_server.process.process_table import (
    Process,
    ProcessTable,
    oom_kills,
    pids_with_marker,
    read_process,
    read_table,
)

KILL_INTERVAL_S = 0.05
KILL_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.2
_NO_PIDFD = frozenset({errno.ENOSYS, errno.EPERM})
"""Errors of a kernel before Linux 5.3, and of sandboxes that forbid the system call."""


class EngineProcess:
    """A running engine, started by this neuron or adopted from the previous one.

    Args:
        pid: pid of its group leader.
        started_ticks: start time of the leader: see `process_table.Process`.
        marker: "NAME=value" in the environment of all its processes.
        child: the leader as a child of this process, if this neuron started it.
        cgroup: its cgroup, if it has one.

    Attributes:
        pid: pid of its group leader, which is also its process group and session id.
        started_ticks: start time of the leader: see `process_table.Process`.
        status: exit status as in subprocess; None while it runs, and for an adopted engine.
        oom_kills: processes of this host that the kernel's OOM killer killed while the engine ran.
        container: the first process of its container, if it runs in one.
    """

    def __init__(
        self,
        pid: int,
        started_ticks: int,
        marker: str,
        *,
        child: subprocess.Popen[bytes] | None = None,
        cgroup: EngineCgroup | None = None,
    ) -> None:
        self.pid = pid
        self.started_ticks = started_ticks
        self.status: int | None = None
        self.oom_kills = 0
        self.container: Process | None = None
        self._oom_kills_before = oom_kills()
        self._marker = marker
        self._child = child
        self._cgroup = cgroup
        self._ended = asyncio.Event()
        self._pidfd: int | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._watch()

    def pids(self, table: ProcessTable) -> frozenset[int]:
        """Return its live processes: those of its process tree, of its cgroup and of its container."""
        pids = self._own_pids(table)
        if self.container is not None:
            pids |= table.remaining_tree(self.container.pid, self.container.started_ticks)
        return pids

    def _own_pids(self, table: ProcessTable) -> frozenset[int]:
        """Return the processes that it can signal: a container's can belong to another user, and end with it."""
        tree = table.tree(self.pid)
        return tree if self._cgroup is None else tree | self._cgroup.pids()

    @property
    def alive(self) -> bool:
        """Whether the leader runs."""
        return not self._ended.is_set()

    async def wait(self) -> int | None:
        """Wait until the leader has ended; return its exit status."""
        await self._ended.wait()
        return self.status

    async def stop(self, stop_signal: signal.Signals, timeout_s: float) -> None:
        """Terminate the leader, kill what has not ended in time, and wait until no process is left.

        Only the leader is signalled, since it ends its workers itself: if SGLang's scheduler is signalled as well, it
        dies with its requests, and the leader treats that as a crash and dumps stacks and GPU state before it ends.

        Args:
            stop_signal: signal that asks the engine to end.
            timeout_s: seconds until it is killed.
        """
        try:
            before = self._own_pids(read_table())
        except OSError:  # without descriptors the leader can still be signalled
            before = frozenset()
        if self.alive:
            self._signal(stop_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout_s)
        await self._kill_remaining(before)

    def detach(self) -> None:
        """Stop watching an engine that will outlive this neuron."""
        if self._child is not None and self.alive:
            self._child.returncode = 0  # so that Popen does not wait for the child
        self._unwatch()

    def _watch(self) -> None:
        """Notice the end of the leader: through a pidfd, or by looking where those are missing or forbidden."""
        loop = asyncio.get_running_loop()
        try:
            self._pidfd = pidfd_open(self.pid)
        except OSError as error:
            if error.errno not in _NO_PIDFD:
                raise
            self._poll = loop.call_later(_POLL_INTERVAL_S, self._look)
        else:
            loop.add_reader(self._pidfd, self._on_end)

    def _look(self) -> None:
        if self._is_running():
            loop = asyncio.get_running_loop()
            self._poll = loop.call_later(_POLL_INTERVAL_S, self._look)
        else:
            self._on_end()

    def _is_running(self) -> bool:
        process = read_process(self.pid)
        same = process is not None and process.started_ticks == self.started_ticks
        return same and process is not None and not process.zombie

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the leader, and never to another process that reuses its pid."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                pidfd_send_signal(self._pidfd, number)
            elif self._is_running():
                os.kill(self.pid, number)

    def _unwatch(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
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

    async def _kill_remaining(self, before: frozenset[int]) -> None:
        """Kill until no process is left; `before` are the processes before the leader was signalled."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + KILL_TIMEOUT_S
        starts = {pid: p.started_ticks for pid in before if (p := read_process(pid)) is not None}
        while loop.time() < deadline:
            if self._cgroup is not None:
                self._cgroup.kill()
            table = read_table()
            remaining = self._own_pids(table) | pids_with_marker(table, self._marker)
            remaining |= {pid for pid, ticks in starts.items() if table.is_same(pid, ticks)}
            live = [p for p in remaining if p in table.by_pid and not table.by_pid[p].zombie]
            if not live and not self.alive:
                break
            for pid in live:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(KILL_INTERVAL_S)
        if self._cgroup is not None:
            self._cgroup.remove()
