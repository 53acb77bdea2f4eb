"""Measures how long one pass of the event loop computes, and how much memory the process gains."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psutil


@dataclass
class LoopLoad:
    """Peaks since the start of the measurement.

    Attributes:
        pass_s: longest pass of the event loop, in seconds of CPU time of its thread: how late every other request was
            because of it, without what other processes on the host add.
        memory_mb: the most MiB that the process had more than at the start.
    """

    pass_s: float = 0.0
    memory_mb: float = 0.0

    def reset(self) -> float:
        """Return the longest pass so far and start over."""
        longest, self.pass_s = self.pass_s, 0.0
        return longest


@contextlib.asynccontextmanager
async def measured_loop() -> AsyncIterator[LoopLoad]:
    """Measure the running event loop until the block exits. Clients have to run in other threads."""
    load, process = LoopLoad(), psutil.Process()
    before = process.memory_info().rss

    async def measure() -> None:
        last, passes = time.thread_time(), 0
        while True:
            await asyncio.sleep(0.0005)
            now = time.thread_time()
            load.pass_s = max(load.pass_s, now - last)
            passes += 1
            if passes % 20 == 0:
                gained = (process.memory_info().rss - before) / 2**20
                load.memory_mb = max(load.memory_mb, gained)
            last = time.thread_time()

    measuring = asyncio.create_task(measure())
    await asyncio.sleep(0.01)
    load.pass_s = 0.0
    try:
        yield load
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)
