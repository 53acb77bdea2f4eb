"""Inspection of engine programs: their flags, their version, and the CUDA libraries that they link."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote

from cortex_common.errors import NotSupported
from neuron_server.process.blocking import run_blocking
from neuron_server.process.supervisor import Launch, engine_environment

_TIMEOUT_S = 30.0
_KILL_S = 5.0
_CUDA_RUNTIME = re.compile(r"lib(?:cudart|cublas)\.so\.(\d+)")
_CUDA_LIBRARY = re.compile(r"lib(?:cuda|cudart|cublas)\.so\.")


async def run_program(
    program: str, *arguments: str, env: Mapping[str, str] | None = None
) -> str | None:
    """Run a program and return its stdout; None if it can't be run, fails, or takes too long."""
    environment = engine_environment(os.environ, Launch(argv=(program,), env=env or {}), {})
    try:
        return await run_blocking(
            partial(_run, (program, *arguments), environment), _TIMEOUT_S + _KILL_S
        )
    except TimeoutError:
        return None


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Run a program in a session of its own; it is killed with all its children if it takes too long."""
    try:
        child = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    with child:
        try:
            output, _ = child.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            output = b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
    return output.decode("utf-8", "replace") if child.returncode == 0 else None


def not_supported_message(check: Callable[[], object]) -> str | None:
    """Return the message and hints of the NotSupported error that a check raises; None if it raises none."""
    try:
        check()
    except NotSupported as missing:
        return ": ".join((str(missing), *missing.hints))
    return None


class Program:
    """An engine's program: its path, and the flags that this build supports.

    Args:
        name: name to look up on PATH if no path is configured.
        configured: the configured path.
        help_args: arguments that make it print its flags.
        assumed_flags: flags that count as supported if its help can't be read.

    Attributes:
        version: the version that `--version` prints; None if unknown.
    """

    def __init__(
        self,
        name: str,
        configured: Path | None,
        *help_args: str,
        assumed_flags: frozenset[str] = frozenset(),
    ) -> None:
        self._name = name
        self._configured = configured
        self._help_args = help_args
        self._assumed_flags = assumed_flags
        self.version: str | None = None
        self._help: str | None = None
        self._inspected: tuple[str, int] | None = None

    @property
    def path(self) -> str | None:
        """The configured path, or the path found on PATH."""
        return str(self._configured) if self._configured else shutil.which(self._name)

    @property
    def missing_reason(self) -> str | None:
        """Why the program can't be run, and what to do about it; None if it can."""
        return not_supported_message(self.require_path)

    def require_path(self) -> str:
        """Return the path.

        Raises:
            NotSupported: the program does not exist, or is not executable.
        """
        path = self.path
        if path is None or not Path(path).is_file():
            raise NotSupported(
                f"there is no {self._name} at {path or 'PATH'} on this node",
                hints=("set binary of the harness in neuron.toml",),
            )
        if not os.access(path, os.X_OK):
            raise NotSupported(
                f"{path} is not executable for the neuron's user",
                hints=(f"`chmod a+x {quote(path)}`",),
            )
        return path

    async def inspect(self) -> None:
        """Read its flags and version, unless this build has been inspected before."""
        build = self._build()
        if build != self._inspected:
            self._help = None if build is None else await run_program(build[0], *self._help_args)
            printed = None if build is None else await run_program(build[0], "--version")
            found = re.search(r"\d+\.\d+\.\d+\S*", printed or "")
            self.version = found[0] if found else None
            self._inspected = build

    def _build(self) -> tuple[str, int] | None:
        return None if self.path is None else build_id(self.path)

    def if_supported(self, flag: str, *values: str) -> list[str]:
        """Return the flag with its values if this build supports it, else an empty list."""
        if self._help is None:
            return [flag, *values] if flag in self._assumed_flags else []
        supported = re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", self._help)
        return [flag, *values] if supported else []


def build_id(program: str) -> tuple[str, int] | None:
    """Return a value that changes when a program is replaced; None if it does not exist."""
    try:
        return program, Path(program).stat().st_mtime_ns
    except OSError:
        return None


async def lacks_cuda(program: str) -> bool:
    """Return whether a program is known to link no CUDA library; False if `ldd` can't read it."""
    printed = await run_program("ldd", program)
    return printed is not None and not _CUDA_LIBRARY.search(printed)


async def linked_cuda_version(program: str) -> int | None:
    """Return the major version of the CUDA runtime that a program links, directly or in a backend; None for none."""
    for candidate in _cuda_candidates(Path(program)):
        printed = await run_program("ldd", str(candidate)) or ""
        if found := _CUDA_RUNTIME.search(printed):
            return int(found[1])
    return None


def _cuda_candidates(program: Path) -> list[Path]:
    """Return the files that can link CUDA: the program, and the backend that llama.cpp loads at run time."""
    resolved = program.resolve()
    return [path for path in (resolved, resolved.with_name("libggml-cuda.so")) if path.is_file()]
