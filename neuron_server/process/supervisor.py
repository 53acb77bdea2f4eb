"""Starts engines, takes over those of the neuron before, and kills what nobody knows.

Each gets a session of its own, a cgroup of its own where the neuron may make some, and a scrubbed environment that
carries the neuron's marks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from cortex_common.errors import LoadFailed
from neuron_server.harness.base import Launch
from neuron_server.process.cgroups import Cgroups, EngineCgroup
from neuron_server.process.engine_process import SWEEP_EVERY_S, SWEEP_LIMIT_S, EngineProcess
from neuron_server.process.process_table import environment, marked, read_process, read_table

_MARK = "CORTEX_INSTANCE"
_OWNER_MARK = "CORTEX_NEURON"

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


@dataclass(frozen=True, slots=True)
class Head:
    """An engine's first process, which leads its group; see `processes.Process`."""

    pid: int
    started_ticks: int


class Supervisor:
    """What a neuron does with engine processes.

    Args:
        owner: marks the engines of the neuron's state directory.
        cgroups: where engines get one each; None leaves them with their process group.

    Attributes:
        fence: what holds an engine's processes together, for people.
    """

    def __init__(self, owner: str, cgroups: Cgroups | None = None) -> None:
        self.fence = "process groups" if cgroups is None else str(cgroups.root)
        self._cgroups = cgroups
        self._owner = owner

    def start(self, launch: Launch, log: BinaryIO, instance: str) -> EngineProcess:
        """Start an engine.

        Raises:
            LoadFailed: the program can't be started, or its cgroup not be made.
        """
        marks = {_OWNER_MARK: self._owner, _MARK: instance}
        cgroup = self._cgroup(instance)
        with contextlib.ExitStack() as until_started:
            enter = None
            if cgroup is not None:
                enter = _enter(cgroup, instance, until_started)
            try:
                child = subprocess.Popen(
                    launch.argv,
                    env=engine_environment(os.environ, launch, marks),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=enter,  # noqa: PLW1509 - one write to an open file: no lock, no import
                )
            except (OSError, subprocess.SubprocessError) as failed:
                if cgroup is not None:
                    cgroup.remove()
                why = getattr(failed, "strerror", None) or failed
                raise LoadFailed(f"can't start {launch.argv[0]}: {why}") from failed
        process = read_process(child.pid)
        assert process is not None, "an unreaped child has an entry"
        return EngineProcess(
            child.pid, process.started_ticks, _mark(instance), child=child, cgroup=cgroup
        )

    def adopt(self, pid: int, started_ticks: int, instance: str) -> EngineProcess | None:
        """Take over an engine that another neuron started; None when it is not there any more."""
        process = read_process(pid)
        if process is None or process.zombie or process.started_ticks != started_ticks:
            return None
        if _mark(instance).encode() not in environment(pid):
            return None
        cgroup = self._cgroup(instance)
        if cgroup is not None and pid not in cgroup.pids():  # it was started without one
            cgroup = None
        try:
            return EngineProcess(pid, started_ticks, _mark(instance), cgroup=cgroup)
        except ProcessLookupError:
            return None

    async def kill_orphans(
        self, spared: frozenset[str], gone: Collection[Head] = ()
    ) -> tuple[int, ...]:
        """Kill engines that a neuron of this state directory started and that were not adopted.

        Marks alone don't find them all: vLLM's and SGLang's workers write their title over their environment, and
        live on without their head.

        Args:
            spared: instances that were adopted.
            gone: the heads of those that were not.

        Returns:
            The pids that were killed.
        """
        table = read_table()
        spared_marks = frozenset().union(*(marked(table, _mark(i)) for i in spared))
        orphans = marked(table, f"{_OWNER_MARK}={self._owner}") - spared_marks - {os.getpid()}
        orphans = orphans.union(
            *(table.tree(pid) for pid in orphans),
            *(table.left_of(head.pid, head.started_ticks) for head in gone),
        )
        cgroups = [cgroup for instance, cgroup in self._left() if instance not in spared]
        orphans = orphans.union(*(cgroup.pids() for cgroup in cgroups))
        for cgroup in cgroups:
            cgroup.kill()
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for _ in range(round(SWEEP_LIMIT_S / SWEEP_EVERY_S)):
            if all(p.zombie for pid in orphans if (p := read_process(pid)) is not None):
                break
            await asyncio.sleep(SWEEP_EVERY_S)
        for cgroup in cgroups:
            cgroup.remove()
        return tuple(sorted(orphans))

    def _cgroup(self, instance: str) -> EngineCgroup | None:
        return None if self._cgroups is None else self._cgroups.of(instance)

    def _left(self) -> tuple[tuple[str, EngineCgroup], ...]:
        return () if self._cgroups is None else tuple(self._cgroups.left())


def _enter(
    cgroup: EngineCgroup, instance: str, until_started: contextlib.ExitStack
) -> Callable[[], None]:
    """Makes the cgroup; what a child calls before it becomes the engine, so that none of its children is outside."""
    try:
        procs = cgroup.create()
    except OSError as failed:
        raise LoadFailed(f"can't make a cgroup for {instance}: {failed}") from failed
    until_started.callback(os.close, procs)

    def enter() -> None:
        os.write(procs, b"0")

    return enter


def _mark(instance: str) -> str:
    return f"{_MARK}={instance}"
