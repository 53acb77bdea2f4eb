"""Programs of engines that hang, or leave children behind, while they are inspected."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from neuron_server.process.blocking import run_blocking
from neuron_server.process.program import run_program


def script(path: Path, text: str) -> str:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def descriptors() -> int:
    """Return the number of open file descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_output_of_a_program_is_read(tmp_path: Path):
    """The standard output is returned; a failure or a missing program is none."""
    assert await run_program(script(tmp_path / "good", "echo 1.2.3; echo x >&2")) == "1.2.3\n"
    assert await run_program(script(tmp_path / "bad", "echo 1.2.3; exit 1")) is None
    assert await run_program(str(tmp_path / "missing")) is None


async def test_a_program_leaves_no_children_and_no_descriptors(tmp_path: Path):
    """Children of a program that has ended are killed, and its pipe is closed here."""
    child = tmp_path / "child.pid"
    before = descriptors()
    program = script(tmp_path / "parent", f"sleep 600 >/dev/null & echo $! > {child}; echo 1.0.0")
    assert await run_program(program) == "1.0.0\n"
    process = int(child.read_text())
    while psutil.pid_exists(process) and psutil.Process(process).status() != "zombie":
        pass
    assert descriptors() == before


async def test_a_call_that_blocks_for_ever_is_left_alone():
    """The deadline holds, other calls continue, and errors reach the caller."""
    blocked = threading.Event()
    with pytest.raises(TimeoutError):
        await run_blocking(blocked.wait, 0.01)
    assert await run_blocking(lambda: 5, 30.0) == 5
    with pytest.raises(ZeroDivisionError):
        await run_blocking(lambda: 1 // 0, 30.0)
    blocked.set()
