"""Background tasks: restarted when they fail, counted, and reported."""

from __future__ import annotations

import asyncio

import pytest

from cortex_common.clock import ManualClock
from cortex_common.supervision import REPORT_S, BackgroundTasks


class Flaky:
    """Work that fails a number of times, and then runs until it is cancelled."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or OSError("too many open files")
        self.running = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        """Fail, or run."""
        if self.failures:
            self.failures -= 1
            raise self.error
        self.running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_a_failed_task_is_restarted_and_counted():
    """A task that raises runs again; its failures are counted and reported for a while."""
    clock, changes = ManualClock(), []
    tasks = BackgroundTasks(clock, lambda: changes.append(1))
    work = Flaky(1)
    tasks.start("watcher", work.run)
    await work.running.wait()
    assert [(f.task, f.count) for f in tasks.failures] == [("watcher", 1)]
    assert changes == [1]
    assert "watcher has failed 1 times" in tasks.warnings()[0]
    assert "too many open files" in tasks.warnings()[0]
    clock.advance(REPORT_S + 1)
    assert tasks.warnings() == ()
    await tasks.close()
    assert work.cancelled


async def test_a_cancellation_from_within_is_a_failure():
    """A library that cancels the task that it runs in does not end it."""
    tasks = BackgroundTasks(ManualClock())
    work = Flaky(1, asyncio.CancelledError())
    tasks.start("poller", work.run)
    await work.running.wait()
    assert tasks.failures[0].count == 1
    await tasks.close()


async def test_an_error_handler_that_fails_ends_no_task():
    """The report of a failure can fail for the same reason as the task."""

    def fail() -> None:
        raise OSError("too many open files")

    tasks = BackgroundTasks(ManualClock(), fail)
    work = Flaky(1)
    tasks.start("store", work.run)
    await work.running.wait()
    await tasks.close()


async def test_a_stopped_task_can_be_started_again():
    """A name is free once its task is stopped, and taken before."""
    tasks = BackgroundTasks(ManualClock())
    first, second = Flaky(0), Flaky(0)
    tasks.start("watcher of n", first.run)
    with pytest.raises(ValueError, match="already running"):
        tasks.start("watcher of n", second.run)
    await first.running.wait()
    await tasks.stop("watcher of n")
    tasks.start("watcher of n", second.run)
    await second.running.wait()
    await tasks.close()
