"""Waiting: for an engine to fall idle before it ends, and for its memory to be free after."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cortex_common.clock import Clock

_IDLE_POLL_S = 0.1
_IDLE_LOOKS = 2
_FREED_POLL_S = 0.1
_FREED_LIMIT_S = 15.0
_NOISE_MB = 8


async def until_idle(
    clock: Clock, within_s: float, in_flight: Callable[[], Awaitable[int | None]]
) -> bool:
    """Wait until an engine has nothing to do, or the time is over; says whether it is idle.

    Two looks in a row must agree: a request may be on its way in. An engine that can't tell is not waited for.
    """
    deadline = clock.monotonic() + within_s
    idle = 0
    while True:
        idle = 0 if await in_flight() else idle + 1
        if idle == _IDLE_LOOKS:
            return True
        if not idle and clock.monotonic() >= deadline:
            return False
        await asyncio.sleep(_IDLE_POLL_S)


async def until_freed(clock: Clock, free_mb: Callable[[], Awaitable[list[int]]]) -> None:
    """Wait until free memory no longer rises: drivers give it back some time after the process is gone."""
    deadline = clock.monotonic() + _FREED_LIMIT_S
    last = await free_mb()
    while clock.monotonic() < deadline:
        await asyncio.sleep(_FREED_POLL_S)
        now = await free_mb()
        if all(new <= old + _NOISE_MB for new, old in zip(now, last, strict=True)):
            return
        last = now
