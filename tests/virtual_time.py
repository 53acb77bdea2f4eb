"""An event loop whose time passes at once while nothing happens, and which counts its rounds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Returns at once, and lets the time pass that the loop would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Poll; if nothing is ready, move the time to the loop's next timer."""
        self.rounds += 1
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self) -> None:
        self.virtual = _Selector()
        super().__init__(self.virtual)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.virtual.now


def rounds_per_second(
    work: Callable[[Callable[[float], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]],
    seconds: float = 100.0,
) -> float:
    """Run `work`, which awaits `idle(seconds)` in the state to be measured; return the rounds per virtual second of it.

    Args:
        work: gets the function to await.
        seconds: how long to measure.
    """
    loop = VirtualTimeLoop()
    measured: list[float] = []

    async def idle(extra: float = 0.0) -> None:
        await asyncio.sleep(10.0 + extra)
        rounds, since = loop.virtual.rounds, loop.time()
        await asyncio.sleep(seconds)
        measured.append((loop.virtual.rounds - rounds) / (loop.time() - since))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work(idle))
    return measured[0]
