"""Restarts attached engines whose memory is fragmented: drains them first, and restores their instances afterwards."""

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
from cortex_server.placement.engine_restarts import Restart, choose_restart, due_restarts

log = logging.getLogger("cortex.lifecycle")

CHECK_INTERVAL_S = 5.0
MIN_INTERVAL_S = 1800.0
"""Minimum interval between automatic restarts of an engine, whatever their outcome."""

REPORT_TIMEOUT_S = 30.0
"""A node reports what its engine has loaded by itself within this time."""

RELOAD_TIMEOUT_S = 1800.0
"""How long to wait for the models of an engine that is up again."""


class EngineRestarts:
    """Restarts attached engines, automatically or for an operator.

    Args:
        fleet: live state of the nodes.
        controller: drains, restarts and unloads.
        clock: for intervals.
    """

    def __init__(self, fleet: Fleet, controller: Controller, clock: Clock) -> None:
        self._fleet = fleet
        self._controller = controller
        self._clock = clock
        self._not_before: dict[tuple[str, str], float] = {}

    def due(self) -> tuple[Restart, ...]:
        """Return the engines that are due, with what blocks a restart now. Changes nothing."""
        cluster = self._controller.planning.cluster()
        nodes = (capacity.node for capacity in cluster.capacities)
        after = self._controller.planning.policy.restart_after_cycles
        return due_restarts(nodes, cluster.stats, after, cluster.now)

    async def restart(self, restart: Restart, drain_s: float) -> None:
        """Restart one engine; return once its models are ready again and only they are loaded.

        Args:
            restart: the engine.
            drain_s: how long its requests may continue.

        Raises:
            InstanceBusy: they continued for longer; the engine keeps running.
            CortexError: the node's error, when it could not restart the engine or a model did not come back.
        """
        event(
            log,
            "engine_restart_started",
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
                await self._wait_for_instances(restart)
                await self._unload_extra(restart, len(answer.models))
        except InstanceBusy:
            outcome = "busy"
            raise
        finally:
            self._fleet.metrics.counters.restarts[restart.node, restart.harness, outcome] += 1

    async def run(self) -> None:
        """Restart engines that are due and idle, one at a time, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now = self._clock.monotonic()
            eligible = [r for r in self.due() if self._not_before.get(_place(r), 0.0) <= now]
            chosen = choose_restart(eligible, self._controller.planning.policy.restart_after_cycles)
            if chosen is None:
                continue
            self._not_before[_place(chosen)] = now + MIN_INTERVAL_S
            try:
                await self.restart(chosen, self._controller.drain_timeout_s)
            except CortexError as error:
                node, harness = _place(chosen)
                event(
                    log,
                    "engine_restart_failed",
                    logging.WARNING,
                    node=node,
                    harness=harness,
                    reason=error.message,
                )

    def _instances_in(self, restart: Restart) -> list[InstanceView]:
        node = self._fleet.node_snapshot.node(restart.node)
        return [i for i in node.instances if i.harness == restart.harness] if node else []

    async def _wait_for_instances(self, restart: Restart) -> None:
        """Return once every instance of the engine is ready again."""
        expected = {i.id for i in restart.instances}

        def none_loading() -> bool:
            return all(
                i.state is not InstanceState.LOADING
                for i in self._instances_in(restart)
                if i.id in expected
            )

        if not await self._wait_until(none_loading, RELOAD_TIMEOUT_S):
            raise UpstreamFailed(
                f"{restart.harness} on {restart.node} is up, but its models are not"
            )
        lost = [i for i in self._instances_in(restart) if i.id in expected and i.error is not None]
        if lost:
            raise UpstreamFailed(f"{lost[0].model} did not come back: {lost[0].error}")

    async def _unload_extra(self, restart: Restart, loaded_count: int) -> None:
        """Unload what the engine has loaded by itself: at its start it loads everything it is configured with."""
        expected = {i.id for i in restart.instances}
        await self._wait_until(
            lambda: len(self._instances_in(restart)) >= loaded_count, REPORT_TIMEOUT_S
        )
        for view in self._instances_in(restart):
            is_extra = view.id not in expected and view.state is InstanceState.READY
            if (
                is_extra
                and not view.in_flight
                and not self._controller.waiting_requests(view.model)
            ):
                await self._controller.unload(
                    view.model, (view,), 0.0, cancel_requests=False, reason="defrag"
                )

    async def _wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until a condition on the fleet holds; return whether it did in time."""
        changed = asyncio.Event()
        self._fleet.on_change(changed.set)
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            self._fleet.remove_listener(changed.set)
        return True


def _place(restart: Restart) -> tuple[str, str]:
    return restart.node, restart.harness
