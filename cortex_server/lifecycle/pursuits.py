"""Instances that are wanted though nobody waits for them: preloads, missing replicas, further copies of busy models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelProfile
from cortex_common.log import event
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.load_queue import Goal

log = logging.getLogger("cortex.lifecycle")

PAUSE_S = 30.0
"""After an instance could not be loaded, the next try comes this much later."""

Want = Callable[[ModelProfile, Goal], Coroutine[None, None, InstanceId]]
"""Waits until an instance for a goal is ready."""


class Pursuits:
    """See the module.

    Args:
        want: has an instance loaded.
        clock: for pauses.
    """

    def __init__(self, want: Want, clock: Clock) -> None:
        self._want = want
        self._clock = clock
        self._under_way: dict[Goal, asyncio.Task[InstanceId]] = {}
        self._not_before: dict[Goal, float] = {}

    def begin(self, profile: ModelProfile, goal: Goal) -> None:
        """Have an instance loaded, unless that is under way or has just failed."""
        if goal in self._under_way or self._clock.monotonic() < self._not_before.get(goal, 0.0):
            return
        event(log, "instance_wanted", model=goal.model, another=goal.another)
        task = asyncio.create_task(self._want(profile, goal))
        self._under_way[goal] = task
        task.add_done_callback(lambda done: self._ended(goal, done))

    def _ended(self, goal: Goal, done: asyncio.Task[InstanceId]) -> None:
        del self._under_way[goal]
        if not done.cancelled() and (failed := done.exception()) is not None:
            self._not_before[goal] = self._clock.monotonic() + PAUSE_S
            event(log, "want_failed", logging.WARNING, model=goal.model, reason=failed)

    async def close(self) -> None:
        """Want nothing any more."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
