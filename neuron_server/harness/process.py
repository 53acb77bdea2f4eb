"""Supervises one engine process: its own session and group, a scrubbed environment, an end that leaves nothing.

Engines are trees: workers of tensor parallelism outlive their head, a crashed head leaves children to init. So every
engine carries a mark in its environment, which its children inherit, and stopping it means that no process of its
group, its tree or its mark is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import BinaryIO

from cortex_common.errors import LoadFailed
from cortex_common.harness import Launch
from neuron_server.processes import environment, marked, read_process, read_table

MARK = "CORTEX_INSTANCE"
OWNER_MARK = "CORTEX_NEURON"

_ALLOWED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "TRANSFORMERS_OFFLINE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "VIRTUAL_ENV",
    ]
)
_SWEEP_EVERY_S = 0.05
_SWEEP_LIMIT_S = 5.0


def engine_environment(
    host: Mapping[str, str], launch: Launch, marks: Mapping[str, str]
) -> dict[str, str]:
    """What an engine gets to see: an allow-list of the host's variables, what it needs, and its marks.

    Engines read settings from variables (LLAMA_ARG_*, VLLM_*), so what happens to be set on the host must not
    reach them.
    """
    allowed = {
        name: value for name, value in host.items() if name in _ALLOWED or name.startswith("LC_")
    }
    return allowed | dict(launch.env) | dict(marks)


class EngineProcess:
    """A running engine, started by this neuron or adopted from the one before.

    Attributes:
        pid: of its head, which is also its process group and session.
        started_ticks: see `processes.Process`.
        status: how it ended, as subprocess tells it; None while it runs, and for an adopted one.
    """

    def __init__(
        self, pid: int, started_ticks: int, mark: str, child: subprocess.Popen[bytes] | None
    ) -> None:
        self.pid = pid
        self.started_ticks = started_ticks
        self.status: int | None = None
        self._mark = mark
        self._child = child
        self._ended = asyncio.Event()
        self._watch()

    @classmethod
    def spawn(
        cls, launch: Launch, log: BinaryIO, marks: Mapping[str, str], instance: str
    ) -> EngineProcess:
        """Start an engine.

        Raises:
            LoadFailed: the program can't be started.
        """
        environment = engine_environment(os.environ, launch, dict(marks) | {MARK: instance})
        try:
            child = subprocess.Popen(
                launch.argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as failed:
            raise LoadFailed(
                f"can't start {launch.argv[0]}: {failed.strerror or failed}"
            ) from failed
        process = read_process(child.pid)
        assert process is not None, "an unreaped child has an entry"
        return cls(child.pid, process.started_ticks, instance, child)

    @classmethod
    def adopt(cls, pid: int, started_ticks: int, instance: str) -> EngineProcess | None:
        """Take over an engine that another neuron started; None when it is not there any more."""
        process = read_process(pid)
        if process is None or process.zombie or process.started_ticks != started_ticks:
            return None
        if f"{MARK}={instance}".encode() not in environment(pid):
            return None
        try:
            return cls(pid, started_ticks, instance, None)
        except ProcessLookupError:
            return None

    @property
    def alive(self) -> bool:
        """Whether the head runs."""
        return not self._ended.is_set()

    async def wait(self) -> int | None:
        """Wait for the head's end."""
        await self._ended.wait()
        return self.status

    async def stop(self, with_signal: signal.Signals, within_s: float) -> None:
        """Ask the whole group to end, kill what has not ended in time, and wait until nothing is left.

        Args:
            with_signal: what asks the engine to end.
            within_s: seconds until it is killed.
        """
        known = read_table().tree(self.pid)
        if self.alive:
            self._signal_group(with_signal)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), within_s)
        await self._sweep(known)

    def let_go(self) -> None:
        """Stop watching an engine that is to outlive this neuron."""
        if self._child is not None and self.alive:
            self._child.returncode = 0  # tells Popen that nobody will wait for it here
        self._unwatch()

    def _watch(self) -> None:
        """A pidfd becomes readable when the process ends, whether or not it is our child (Linux 5.3)."""
        self._pidfd: int | None = os.pidfd_open(self.pid)
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
        self._ended.set()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _sweep(self, known: frozenset[int]) -> None:
        """Kill until neither group nor tree nor mark has a living process."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SWEEP_LIMIT_S
        mark = f"{MARK}={self._mark}"
        starts = {pid: p.started_ticks for pid in known if (p := read_process(pid)) is not None}
        while loop.time() < deadline:
            table = read_table()
            left = table.tree(self.pid) | marked(table, mark)
            left |= {pid for pid, ticks in starts.items() if table.is_same(pid, ticks)}
            left = frozenset(p for p in left if not table.by_pid[p].zombie)
            if not left and not self.alive:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_SWEEP_EVERY_S)


async def kill_orphans(owner: str, spared: frozenset[str]) -> tuple[int, ...]:
    """Kill engines that a neuron of this state directory started and that no record knows.

    Args:
        owner: value of the owner's mark: which state directory started them.
        spared: instances that were adopted.

    Returns:
        The pids that were killed.
    """
    table = read_table()
    spared_marks = frozenset().union(*(marked(table, f"{MARK}={i}") for i in spared))
    orphans = marked(table, f"{OWNER_MARK}={owner}") - spared_marks - {os.getpid()}
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(round(_SWEEP_LIMIT_S / _SWEEP_EVERY_S)):
        if all(p.zombie for pid in orphans if (p := read_process(pid)) is not None):
            break
        await asyncio.sleep(_SWEEP_EVERY_S)
    return tuple(sorted(orphans))
