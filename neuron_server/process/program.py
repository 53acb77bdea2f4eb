"""Asking an engine's program something on its command line, and what it was built against."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote

from cortex_common.errors import NotSupported
from neuron_server.harness.base import Launch
from neuron_server.process.supervisor import engine_environment

_PATIENCE_S = 30.0
_CUDA_RUNTIME = re.compile(r"lib(?:cudart|cublas)\.so\.(\d+)")
_CUDA = re.compile(r"lib(?:cuda|cudart|cublas)\.so\.")


async def run_program(
    program: str, *arguments: str, env: Mapping[str, str] | None = None
) -> str | None:
    """What a program prints on stdout; None when it can't be run, fails, or takes too long."""
    environment = engine_environment(os.environ, Launch(argv=(program,), env=env or {}), {})
    try:
        child = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            output, _ = await child.communicate()
    except TimeoutError:
        return None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return output.decode("utf-8", "replace") if child.returncode == 0 else None


def absence(check: Callable[[], object]) -> str | None:
    """What a check finds missing of an engine, with its hints; None where it finds nothing."""
    try:
        check()
    except NotSupported as absent:
        return ": ".join((str(absent), *absent.hints))
    return None


class Program:
    """An engine's program: where it is, and which flags this build of it has.

    Args:
        name: on PATH, where no path is configured.
        configured: the operator's path.
        asked: the arguments that make it print its flags.
        assumed: the flags that count as known while it could not be asked.

    Attributes:
        version: what it says on stdout when asked for it.
    """

    def __init__(
        self,
        name: str,
        configured: Path | None,
        *asked: str,
        assumed: frozenset[str] = frozenset(),
    ) -> None:
        self._name = name
        self._configured = configured
        self._asked = asked
        self._assumed = assumed
        self.version: str | None = None
        self._help: str | None = None
        self._looked_at: tuple[str, int] | None = None

    @property
    def path(self) -> str | None:
        """Where it is, or where the operator says that it is."""
        return str(self._configured) if self._configured else shutil.which(self._name)

    @property
    def missing(self) -> str | None:
        """That it is not there, and what to do; None where it is."""
        return absence(self.required)

    def required(self) -> str:
        """Its path.

        Raises:
            NotSupported: it is not there, or may not be run.
        """
        path = self.path
        if path is None or not Path(path).is_file():
            raise NotSupported(
                f"there is no {self._name} at {path or 'PATH'} on this node",
                hints=("set binary of the harness in neuron.toml",),
            )
        if not os.access(path, os.X_OK):
            raise NotSupported(
                f"the neuron may not run {path} on this node", hints=(f"`chmod a+x {quote(path)}`",)
            )
        return path

    async def look(self) -> None:
        """Ask it for its flags and version, unless it is the one that was asked before."""
        build = self._build()
        if build != self._looked_at:
            self._help = None if build is None else await run_program(build[0], *self._asked)
            told = None if build is None else await run_program(build[0], "--version")
            found = re.search(r"\d+\.\d+\.\d+\S*", told or "")
            self.version = found[0] if found else None
            self._looked_at = build

    def _build(self) -> tuple[str, int] | None:
        return None if self.path is None else build_of(self.path)

    def where_known(self, flag: str, *values: str) -> list[str]:
        """The flag with its values, when this build has it."""
        if self._help is None:
            return [flag, *values] if flag in self._assumed else []
        known = re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", self._help)
        return [flag, *values] if known else []


def build_of(program: str) -> tuple[str, int] | None:
    """What of a program changes with an upgrade; None where it is not there."""
    try:
        return program, Path(program).stat().st_mtime_ns
    except OSError:
        return None


async def links_no_cuda(program: str) -> bool:
    """Whether a program is known to link nothing of CUDA; one that `ldd` can't read might."""
    printed = await run_program("ldd", program)
    return printed is not None and not _CUDA.search(printed)


async def linked_cuda(program: str) -> int | None:
    """The major version of the CUDA runtime that a program or its CUDA backend beside it links; None for none."""
    for candidate in _linking(Path(program)):
        printed = await run_program("ldd", str(candidate)) or ""
        if found := _CUDA_RUNTIME.search(printed):
            return int(found[1])
    return None


def _linking(program: Path) -> list[Path]:
    """llama.cpp opens its CUDA backend at run time, so the program itself need not link CUDA."""
    here = program.resolve()
    return [path for path in (here, here.with_name("libggml-cuda.so")) if path.is_file()]
