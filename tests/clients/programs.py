"""Run a real client as a user would, isolated from the user's files and from the internet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 90.0
"""These programs are hundreds of megabytes and start slowly on a busy machine."""


@dataclass(frozen=True)
class CompletedProgram:
    """The result of a program."""

    code: int
    out: str
    err: str


async def run(
    binary: Path, *arguments: str, home: Path, environ: Mapping[str, str]
) -> CompletedProgram:
    """Run a program to its end, in the directory `home`, which is also its home."""
    base = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", "NO_PROXY": "*"}
    process = await asyncio.create_subprocess_exec(
        binary,
        *arguments,
        cwd=home,
        env=base | dict(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return CompletedProgram(process.returncode, out.decode(), err.decode())
