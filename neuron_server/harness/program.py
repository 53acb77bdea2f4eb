"""Asking an engine's program something on its command line, and what it was built against."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

from cortex_common.harness import Launch
from neuron_server.harness.supervisor import engine_environment

_PATIENCE_S = 30.0
_CUDA_RUNTIME = re.compile(r"lib(?:cudart|cublas)\.so\.(\d+)")


async def run_program(program: str, *arguments: str) -> str | None:
    """What a program prints on stdout; None when it can't be run, fails, or takes too long."""
    environment = engine_environment(os.environ, Launch(argv=(program,)), {})
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


def has_flag(help_text: str, flag: str) -> bool:
    """Whether a program's --help names a flag."""
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text) is not None


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
