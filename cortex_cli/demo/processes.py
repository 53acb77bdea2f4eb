"""The demo's daemons as child processes, which never outlive the demo."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cortex_cli.client import GatewayTarget
from cortex_cli.http import ErrorResponse, GatewayHttp
from cortex_common.errors import LoadFailed, UpstreamFailed, UpstreamTimeout

_PR_SET_CHILD_SUBREAPER = 36
_STOP_TIMEOUT_S = 15.0
_LOG_TAIL_LINES = 15
_POLL_S = 0.05
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """A daemon.

    Attributes:
        name: name for messages.
        process: the process.
        log: file that its output is written to.
    """

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def log_tail(self) -> str:
        """Return the end of its log."""
        with suppress(OSError), self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, _LOG_TAIL_LINES)).rstrip()
        return ""


def adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants, so that it can stop them (Linux: prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def start(name: str, arguments: list[str], log: Path) -> ChildProcess:
    """Start `cortex ARGUMENTS` in its own session, so that Ctrl-C reaches only the demo."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cortex_cli",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=environ,
            start_new_session=True,
        )
    return ChildProcess(name, process, log)


async def wait_healthy(child: ChildProcess, url: str, timeout_s: float) -> float:
    """Wait until a daemon responds to GET /health; return the seconds that it took.

    A neuron responds with 401, because every request to it needs its token.

    Raises:
        LoadFailed: it exited; the message contains the end of its log.
        UpstreamTimeout: it was not healthy in time.
    """
    started = time.monotonic()
    async with GatewayHttp(GatewayTarget(url), timeout_s=2.0) as http:
        while time.monotonic() - started < timeout_s:
            if child.process.returncode is not None:
                raise LoadFailed(
                    f"the {child.name} exited with {child.process.returncode}:\n{child.log_tail()}",
                    hints=(f"log: {child.log}",),
                )
            with suppress(UpstreamFailed):
                try:
                    await http.get("/health")
                except ErrorResponse as error:
                    if error.status != _UNAUTHORIZED:
                        await asyncio.sleep(_POLL_S)
                        continue
                return time.monotonic() - started
            await asyncio.sleep(_POLL_S)
    raise UpstreamTimeout(
        f"the {child.name} is not healthy after {timeout_s:.0f}s:\n{child.log_tail()}",
        hints=(f"log: {child.log}",),
    )


async def stop(children: list[ChildProcess]) -> None:
    """Stop daemons in order, then their orphaned descendants."""
    for child in children:
        if child.process.returncode is None:
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.process.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
    await asyncio.to_thread(_stop_descendants)


def _stop_descendants() -> None:
    """Stop all descendants: engines whose neuron was killed are now children of this process."""
    import psutil

    descendants = psutil.Process().children(recursive=True)
    for process in descendants:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, remaining = psutil.wait_procs(descendants, timeout=5.0)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=5.0)
