"""Background tasks that are restarted when they fail, and whose failures are counted and shown.

A task that ends unseen takes a part of its daemon with it for good: a watcher its node, a poller its counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace

from cortex_common.backoff import Backoff
from cortex_common.clock import Clock

log = logging.getLogger("cortex.tasks")

RESTART_BACKOFF = Backoff(initial_s=0.5, max_s=30.0)

RESET_S = 60.0
"""Seconds without a failure after which the back-off of a task starts again."""

REPORT_S = 600.0
"""Seconds for which a failure is reported to operators."""

Work = Callable[[], Coroutine[object, object, None]]
"""Creates the coroutine of a task; called again for each restart."""


@dataclass(frozen=True, slots=True)
class TaskFailures:
    """The failures of one background task.

    Attributes:
        task: its name.
        count: failures since the daemon started.
        error: the last one.
        at: Unix seconds of the last one.
    """

    task: str
    count: int
    error: str
    at: float


class BackgroundTasks:
    """The background tasks of a daemon, by name.

    A task that returns has finished and is not restarted. One that raises is restarted, after a delay that grows with
    each failure in a row.

    Args:
        clock: for the time of failures.
        on_failure: called after each failure has been counted.
    """

    def __init__(self, clock: Clock, on_failure: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._on_failure = on_failure
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, TaskFailures] = {}

    @property
    def failures(self) -> tuple[TaskFailures, ...]:
        """The failures of each task that has had any."""
        return tuple(self._failures.values())

    def start(self, name: str, work: Work) -> None:
        """Run a task until `stop` or `close`; a task of that name must not be running."""
        if name in self._tasks:
            raise ValueError(f"the task {name!r} is already running")
        task = asyncio.create_task(self._supervise(name, work), name=name)
        self._tasks[name] = task

    async def stop(self, name: str) -> None:
        """Cancel a task, and wait until it has ended."""
        await _cancel(filter(None, (self._tasks.pop(name, None),)))

    async def close(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks, self._tasks = self._tasks, {}
        await _cancel(tasks.values())

    def warnings(self) -> tuple[str, ...]:
        """Return the recent failures as text for operators."""
        since = self._clock.unix() - REPORT_S
        return tuple(
            f"the background task {f.task} has failed {f.count} times, last: {f.error}; it was restarted"
            for f in self._failures.values()
            if f.at >= since
        )

    async def _supervise(self, name: str, work: Work) -> None:
        in_row = 0
        while True:
            started = self._clock.monotonic()
            try:
                await work()
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
                error: BaseException = RuntimeError("it was cancelled from within")
            except Exception as failure:  # noqa: BLE001 - whatever it is, the task must run
                error = failure
            else:
                return
            in_row = 1 if self._clock.monotonic() - started > RESET_S else in_row + 1
            self.record_failure(name, error)
            await asyncio.sleep(RESTART_BACKOFF.delay_s(in_row))

    def record_failure(self, name: str, error: BaseException) -> None:
        """Count a failure; for tasks that continue after an error."""
        known = self._failures.get(name, TaskFailures(name, 0, "", 0.0))
        text = f"{type(error).__name__}: {error}"[:512]
        at = self._clock.unix()
        self._failures[name] = replace(known, count=known.count + 1, error=text, at=at)
        # The handler of the error can fail for the same reason, such as a lack of file descriptors.
        with contextlib.suppress(Exception):
            log.error("task_failed", exc_info=error, extra={"fields": {"task": name}})
        with contextlib.suppress(Exception):
            self._on_failure()


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    cancelled = tuple(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
