"""Calls that can block for ever, such as a stat on a stalled share or a driver that hangs: aside, with a deadline.

Each call has a daemon thread of its own, so that one that never returns takes no thread from another, and does not keep
the neuron from exiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def start_blocking(work: Callable[[], T]) -> Future[T]:
    """Start a call on a thread of its own; the future gets its result or its exception."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - the caller decides
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(result)

    threading.Thread(target=run, name="blocking call", daemon=True).start()
    return future


async def run_blocking(work: Callable[[], T], timeout_s: float) -> T:
    """Run a call on a thread of its own and return its result.

    Raises:
        TimeoutError: it takes longer; it continues, and its result is ignored.
        Exception: what it raises.
    """
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(start_blocking(work))
