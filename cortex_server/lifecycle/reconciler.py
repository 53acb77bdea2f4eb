"""Does what is due with time alone: idle models go, preloads and missing replicas come, busy models get company."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.desired_state import DesiredState, preloads
from cortex_server.placement.load_queue import LoadKey

log = logging.getLogger("cortex.lifecycle")

PAUSE_S = 30.0
"""After an instance could not be loaded, the next try comes this much later."""

Want = Callable[[ModelConfig, LoadKey], Coroutine[None, None, InstanceId]]
"""Waits until an instance for a goal is ready."""


class LoadRetries:
    """See the module.

    Args:
        want: has an instance loaded.
        clock: for pauses.
    """

    def __init__(self, want: Want, clock: Clock) -> None:
        self._want = want
        self._clock = clock
        self._under_way: dict[LoadKey, asyncio.Task[InstanceId]] = {}
        self._not_before: dict[LoadKey, float] = {}

    def begin(self, model_config: ModelConfig, key: LoadKey) -> None:
        """Have an instance loaded, unless that is under way or has just failed."""
        if key in self._under_way or self._clock.monotonic() < self._not_before.get(key, 0.0):
            return
        event(log, "instance_wanted", model=key.model, replica=key.replica)
        task = asyncio.create_task(self._want(model_config, key))
        self._under_way[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: LoadKey, done: asyncio.Task[InstanceId]) -> None:
        del self._under_way[key]
        if not done.cancelled() and (failed := done.exception()) is not None:
            self._not_before[key] = self._clock.monotonic() + PAUSE_S
            event(log, "want_failed", logging.WARNING, model=key.model, reason=failed)

    async def close(self) -> None:
        """Want nothing any more."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


log = logging.getLogger("cortex.lifecycle")

IDLE_DRAIN_S = 5.0
"""An idle instance that gets a request just as it is to be unloaded stays, if that takes longer than this."""


class Unload(Protocol):
    """See `Conductor.unload`."""

    def __call__(
        self,
        model: str,
        instances: tuple[InstanceView, ...],
        drain_s: float,
        *,
        whole: bool,
        why: str,
    ) -> Coroutine[None, None, None]:
        """Drain and end instances of a model."""
        ...


class Reconciler:
    """See the module.

    Args:
        upkeep: says what is due.
        want: has an instance loaded.
        unload: has instances ended.
        is_leaving: whether an instance is being ended already.
        clock: for pauses.
    """

    def __init__(
        self,
        upkeep: DesiredState,
        want: Want,
        unload: Unload,
        is_leaving: Callable[[InstanceId], bool],
        clock: Clock,
    ) -> None:
        self._upkeep = upkeep
        self._pursuits = LoadRetries(want, clock)
        self._unload = unload
        self._is_leaving = is_leaving
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, model_configs: Mapping[str, ModelConfig]) -> None:
        """Want what is to be there from the start."""
        for key in preloads(model_configs.values()):
            self._pursuits.begin(model_configs[key.model], key)

    def do(
        self, shown: FleetSnapshot, model_configs: Mapping[str, ModelConfig], now: float
    ) -> None:
        """Begin whatever is due.

        Args:
            shown: the fleet, with operators' pins.
            model_configs: by model id.
            now: monotonic seconds.
        """
        chores = self._upkeep.due(shown, model_configs.values(), now)
        for key in chores.want:
            self._pursuits.begin(model_configs[key.model], key)
        for view in chores.unload:
            if not self._is_leaving(view.id):
                event(log, "idle_unload", model=view.model, node=view.node, instance=view.id)
                task = asyncio.create_task(self._unload_idle(view))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Begin nothing more, and let go of what is under way."""
        await self._pursuits.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _unload_idle(self, view: InstanceView) -> None:
        try:
            await self._unload(view.model, (view,), IDLE_DRAIN_S, whole=False, why="idle")
        except CortexError as failed:
            event(log, "idle_unload_failed", logging.WARNING, model=view.model, reason=failed)
