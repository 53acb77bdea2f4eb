"""Does what is due with time alone: idle models go, preloads and missing replicas come, busy models get company."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelProfile
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId
from cortex_server.lifecycle.pursuits import Pursuits, Want
from cortex_server.placement.desired_state import Upkeep, preloads

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


class Housekeeping:
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
        upkeep: Upkeep,
        want: Want,
        unload: Unload,
        is_leaving: Callable[[InstanceId], bool],
        clock: Clock,
    ) -> None:
        self._upkeep = upkeep
        self._pursuits = Pursuits(want, clock)
        self._unload = unload
        self._is_leaving = is_leaving
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, profiles: Mapping[str, ModelProfile]) -> None:
        """Want what is to be there from the start."""
        for goal in preloads(profiles.values()):
            self._pursuits.begin(profiles[goal.model], goal)

    def do(self, shown: FleetSnapshot, profiles: Mapping[str, ModelProfile], now: float) -> None:
        """Begin whatever is due.

        Args:
            shown: the fleet, with operators' pins.
            profiles: by model id.
            now: monotonic seconds.
        """
        chores = self._upkeep.due(shown, profiles.values(), now)
        for goal in chores.want:
            self._pursuits.begin(profiles[goal.model], goal)
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
