"""Restarts engines of somebody else whose memory is scattered: drained first, and with what was in them afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cortex_common.clock import Clock
from cortex_common.errors import CortexError, InstanceBusy, UpstreamFailed
from cortex_common.log import event
from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.instances import InstanceState
from cortex_server.fleet.state import Fleet
from cortex_server.lifecycle.controller import Controller
from cortex_server.placement.engine_restarts import Restart, choose, due_restarts

log = logging.getLogger("cortex.lifecycle")

LOOK_EVERY_S = 5.0
REST_S = 1800.0
"""An engine is left alone for so long after a restart unasked, whatever came of it."""

SHOWN_WITHIN_S = 30.0
"""A node shows what its engine has loaded of itself within this time."""

BACK_WITHIN_S = 1800.0
"""How long the models of an engine that is up again are waited for."""


class EngineRestarts:
    """See the module.

    Args:
        fleet: the live state.
        conductor: who drains, asks and unloads.
        clock: for pauses.
    """

    def __init__(self, fleet: Fleet, controller: Controller, clock: Clock) -> None:
        self._fleet = fleet
        self._controller = controller
        self._clock = clock
        self._not_before: dict[tuple[str, str], float] = {}

    def due(self) -> tuple[Restart, ...]:
        """Engines that are due, with what speaks against a restart now. Changes nothing."""
        cluster = self._controller.advice.cluster()
        nodes = (capacity.node for capacity in cluster.capacities)
        after = self._controller.advice.policy.restart_after_cycles
        return due_restarts(nodes, cluster.stats, after, cluster.now)

    async def make(self, restart: Restart, drain_s: float) -> None:
        """Restart one engine; returns once its models are ready again, and only they are loaded.

        Args:
            restart: which.
            drain_s: how long requests in it may go on.

        Raises:
            StillBusy: they went on for longer; the engine runs on.
            CortexError: the node's, when it could not restart it, or a model did not come back.
        """
        event(
            log,
            "engine_restart_asked",
            node=restart.node,
            harness=restart.harness,
            cycles=restart.cycles,
            models=tuple(i.model for i in restart.instances),
        )
        outcome = "failed"
        try:
            answer = await self._controller.restart(restart, drain_s)
            outcome = answer.status
            if answer.status == "restarted":
                await self._all_back(restart)
                await self._only_those(restart, len(answer.models))
        except InstanceBusy:
            outcome = "busy"
            raise
        finally:
            self._fleet.metrics.counters.restarts[restart.node, restart.harness, outcome] += 1

    async def run(self) -> None:
        """Restart what is due and quiet, one at a time; runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self._clock.monotonic()
            rested = [r for r in self.due() if self._not_before.get(_place(r), 0.0) <= now]
            chosen = choose(rested, self._controller.advice.policy.restart_after_cycles)
            if chosen is None:
                continue
            self._not_before[_place(chosen)] = now + REST_S
            try:
                await self.make(chosen, self._controller.drain_timeout_s)
            except CortexError as failed:
                node, harness = _place(chosen)
                event(
                    log,
                    "engine_not_restarted",
                    logging.WARNING,
                    node=node,
                    harness=harness,
                    reason=failed.message,
                )

    def _inside(self, restart: Restart) -> list[InstanceView]:
        node = self._fleet.bare.node(restart.node)
        return [i for i in node.instances if i.harness == restart.harness] if node else []

    async def _all_back(self, restart: Restart) -> None:
        """Return once everything that was in the engine is ready again."""
        wanted = {i.id for i in restart.instances}

        def settled() -> bool:
            return all(
                i.state is not InstanceState.LOADING
                for i in self._inside(restart)
                if i.id in wanted
            )

        if not await self._until(settled, BACK_WITHIN_S):
            raise UpstreamFailed(f"{restart.harness} on {restart.node} is up, its models are not")
        lost = [i for i in self._inside(restart) if i.id in wanted and i.error is not None]
        if lost:
            raise UpstreamFailed(f"{lost[0].model} did not come back: {lost[0].error}")

    async def _only_those(self, restart: Restart, loaded: int) -> None:
        """End what the engine has loaded of itself, as it starts with all that it was configured with."""
        before = {i.id for i in restart.instances}
        await self._until(lambda: len(self._inside(restart)) >= loaded, SHOWN_WITHIN_S)
        for view in self._inside(restart):
            unasked = view.id not in before and view.state is InstanceState.READY
            if unasked and not view.in_flight and not self._controller.waiting(view.model):
                await self._controller.unload(view.model, (view,), 0.0, whole=False, why="defrag")

    async def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait until something about the fleet is true; whether it is within the time."""
        changed = asyncio.Event()
        self._fleet.on_change(changed.set)
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            self._fleet.remove_listener(changed.set)
        return True


def _place(restart: Restart) -> tuple[str, str]:
    return restart.node, restart.harness
