"""The demo's daemons as child processes that never outlive it."""

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

import httpx

from cortex_common.client.control import tls_verify
from cortex_common.errors import LoadFailed, UpstreamTimeout

_PR_SET_CHILD_SUBREAPER = 36
_STOP_S = 15.0
_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Child:
    """A daemon.

    Attributes:
        log: where its stderr goes.
    """

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def last_words(self) -> str:
        """The end of its log."""
        with suppress(OSError), self.log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, _LAST_LINES)).rstrip()
        return ""


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind, so that it can end it (Linux: prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def start(name: str, arguments: list[str], log: Path) -> Child:
    """Start `cortex ARGUMENTS` in a session of its own, so that Ctrl-C reaches only the demo."""
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
    return Child(name, process, log)


async def healthy(child: Child, url: str, timeout_s: float) -> float:
    """Wait until a daemon answers GET /health with 200; returns the seconds that took.

    Raises:
        LoadFailed: it ended; the message holds its last words.
        UpstreamTimeout: it did not get there in time.
    """
    began = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=2.0, verify=tls_verify(url)) as http:
        while time.monotonic() - began < timeout_s:
            if child.process.returncode is not None:
                raise LoadFailed(
                    f"the {child.name} ended with {child.process.returncode}:\n{child.last_words()}",
                    hints=(f"its log: {child.log}",),
                )
            with suppress(httpx.HTTPError):
                if (await http.get(f"{url}/health")).status_code == 200:
                    return time.monotonic() - began
            await asyncio.sleep(0.05)
    raise UpstreamTimeout(
        f"the {child.name} is not healthy after {timeout_s:.0f}s:\n{child.last_words()}",
        hints=(f"its log: {child.log}",),
    )


async def stop(children: list[Child]) -> None:
    """End daemons in that order, then whatever they left behind."""
    for child in children:
        if child.process.returncode is None:
            with suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.process.wait(), _STOP_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
    await asyncio.to_thread(_sweep)


def _sweep() -> None:
    """End all descendants: engines whose neuron was killed are this process's children by now."""
    import psutil

    left = psutil.Process().children(recursive=True)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=5.0)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5.0)
