"""Starts engine processes, adopts those of the previous neuron, and kills orphans.

Each engine gets a session of its own, a cgroup of its own if the neuron is allowed to create cgroups, and a sanitized
environment that contains the neuron's markers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from cortex_common.errors import LoadFailed
from neuron_server.process.cgroups import Cgroups, EngineCgroup
from neuron_server.process.engine_process import KILL_INTERVAL_S, KILL_TIMEOUT_S, EngineProcess
from neuron_server.process.process_table import (
    environment,
    pids_with_marker,
    read_process,
    read_table,
)

_INSTANCE_VARIABLE = "CORTEX_INSTANCE"
_OWNER_VARIABLE = "CORTEX_NEURON"

_ALLOWED_VARIABLES = frozenset(
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


@dataclass(frozen=True, slots=True)
class Launch:
    """The command of an engine process.

    Attributes:
        argv: program and arguments; never a shell command.
        env: environment variables in addition to the supervisor's allow-list.
        stop_argv: command that asks the engine to end, before its process is signalled.
        pid_argv: command that prints the pid of an engine in a container, whose processes are not children of `argv`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_argv: tuple[str, ...] = ()
    pid_argv: tuple[str, ...] = ()


def engine_environment(
    host: Mapping[str, str], launch: Launch, markers: Mapping[str, str]
) -> dict[str, str]:
    """Return an engine's environment: allowed variables of the host, those of the launch, and the markers.

    Engines read settings from variables (LLAMA_ARG_*, VLLM_*), so other variables of the host must not reach them.
    """
    allowed = {
        name: value
        for name, value in host.items()
        if name in _ALLOWED_VARIABLES or name.startswith("LC_")
    }
    return allowed | dict(launch.env) | dict(markers)


@dataclass(frozen=True, slots=True)
class GroupLeader:
    """An engine's first process, which leads its process group: see `process_table.Process`."""

    pid: int
    started_ticks: int


class Supervisor:
    """Starts, adopts and kills engine processes.

    Args:
        owner: id that marks the engines of the neuron's state directory.
        cgroups: creates a cgroup per engine; None isolates engines by process group only.

    Attributes:
        isolation: description of how an engine's processes are kept together.
    """

    def __init__(self, owner: str, cgroups: Cgroups | None = None) -> None:
        self.isolation = "process groups" if cgroups is None else str(cgroups.root)
        self._cgroups = cgroups
        self._owner = owner

    def start(self, launch: Launch, log: BinaryIO, instance: str) -> EngineProcess:
        """Start an engine.

        Raises:
            LoadFailed: the program can't be started, or its cgroup can't be created.
        """
        markers = {_OWNER_VARIABLE: self._owner, _INSTANCE_VARIABLE: instance}
        cgroup = self._cgroup(instance)
        with contextlib.ExitStack() as until_started:
            join_cgroup = None
            if cgroup is not None:
                join_cgroup = _create_cgroup(cgroup, instance, until_started)
            try:
                child = subprocess.Popen(
                    launch.argv,
                    env=engine_environment(os.environ, launch, markers),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=join_cgroup,  # noqa: PLW1509 - one write to an open file: no lock, no import
                )
            except (OSError, subprocess.SubprocessError) as error:
                if cgroup is not None:
                    cgroup.remove()
                reason = getattr(error, "strerror", None) or error
                raise LoadFailed(f"can't start {launch.argv[0]}: {reason}") from error
        _reset_oom_score(child.pid)
        try:
            process = read_process(child.pid)
            if process is None:
                raise ProcessLookupError(f"/proc does not show process {child.pid}")
            return EngineProcess(
                child.pid, process.started_ticks, _marker(instance), child=child, cgroup=cgroup
            )
        except OSError as error:  # such as a lack of file descriptors: an engine that is not watched must not stay
            _kill_group(child, cgroup)
            raise LoadFailed(f"can't watch {launch.argv[0]}: {error}") from error

    def adopt(self, pid: int, started_ticks: int, instance: str) -> EngineProcess | None:
        """Adopt an engine that another neuron started; return None if it has ended."""
        process = read_process(pid)
        if process is None or process.zombie or process.started_ticks != started_ticks:
            return None
        if _marker(instance).encode() not in environment(pid):
            return None
        cgroup = self._cgroup(instance)
        if cgroup is not None and pid not in cgroup.pids():  # it was started without a cgroup
            cgroup = None
        try:
            return EngineProcess(pid, started_ticks, _marker(instance), cgroup=cgroup)
        except ProcessLookupError:
            return None

    async def kill_orphans(
        self, adopted: frozenset[str], leaders: Collection[GroupLeader] = ()
    ) -> tuple[int, ...]:
        """Kill the engines of this state directory's neurons that were not adopted.

        Markers alone don't find all processes: the workers of vLLM and SGLang overwrite their environment with their
        process title, and keep running without their leader.

        Args:
            adopted: the adopted instances.
            leaders: group leaders of the engines that were not adopted.

        Returns:
            The pids that were killed.
        """
        table = read_table()
        adopted_pids = frozenset().union(*(pids_with_marker(table, _marker(i)) for i in adopted))
        orphans = (
            pids_with_marker(table, f"{_OWNER_VARIABLE}={self._owner}")
            - adopted_pids
            - {os.getpid()}
        )
        orphans = orphans.union(
            *(table.tree(pid) for pid in orphans),
            *(table.remaining_tree(leader.pid, leader.started_ticks) for leader in leaders),
        )
        cgroups = [
            cgroup for instance, cgroup in self._existing_cgroups() if instance not in adopted
        ]
        orphans = orphans.union(*(cgroup.pids() for cgroup in cgroups))
        for cgroup in cgroups:
            cgroup.kill()
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for _ in range(round(KILL_TIMEOUT_S / KILL_INTERVAL_S)):
            if all(p.zombie for pid in orphans if (p := read_process(pid)) is not None):
                break
            await asyncio.sleep(KILL_INTERVAL_S)
        for cgroup in cgroups:
            cgroup.remove()
        return tuple(sorted(orphans))

    def _cgroup(self, instance: str) -> EngineCgroup | None:
        return None if self._cgroups is None else self._cgroups.for_instance(instance)

    def _existing_cgroups(self) -> tuple[tuple[str, EngineCgroup], ...]:
        return () if self._cgroups is None else tuple(self._cgroups.existing())


def _create_cgroup(
    cgroup: EngineCgroup, instance: str, until_started: contextlib.ExitStack
) -> Callable[[], None]:
    """Create a cgroup; return a function that a child calls before it executes the engine, to join the cgroup."""
    try:
        procs = cgroup.create()
    except OSError as error:
        raise LoadFailed(f"can't create a cgroup for {instance}: {error}") from error
    until_started.callback(os.close, procs)

    def join() -> None:
        os.write(procs, b"0")

    return join


def _reset_oom_score(pid: int) -> None:
    """Let the kernel choose an engine rather than the neuron, whose unit protects it, when memory runs out."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("0", encoding="ascii")


def _kill_group(child: subprocess.Popen[bytes], cgroup: EngineCgroup | None) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if cgroup is not None:
        cgroup.kill()
    child.wait()


def _marker(instance: str) -> str:
    return f"{_INSTANCE_VARIABLE}={instance}"
