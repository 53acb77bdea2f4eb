"""Carries out what time alone makes due: unloads idle models, and loads preloads, missing replicas and scale-outs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol

from cortex_common.clock import Clock
from cortex_common.config.catalogue import ModelConfig
from cortex_common.log import event
from cortex_common.schema.fleet import FleetSnapshot, InstanceView
from cortex_common.schema.instances import InstanceId
from cortex_server.placement.desired_state import DesiredState
from cortex_server.placement.load_queue import LoadKey

log = logging.getLogger("cortex.lifecycle")

RETRY_INTERVAL_S = 30.0
"""Seconds after a failed background load before it is tried again."""

EnsureLoaded = Callable[[ModelConfig, LoadKey], Coroutine[None, None, InstanceId]]
"""Waits until an instance with a key is ready; see `Controller.ensure_loaded`."""


class BackgroundLoads:
    """Loads that no request waits for, one task per key, retried at intervals.

    Args:
        ensure_loaded: loads an instance.
        clock: for intervals.
    """

    def __init__(self, ensure_loaded: EnsureLoaded, clock: Clock) -> None:
        self._ensure_loaded = ensure_loaded
        self._clock = clock
        self._tasks: dict[LoadKey, asyncio.Task[InstanceId]] = {}
        self._not_before: dict[LoadKey, float] = {}

    def start(self, model_config: ModelConfig, key: LoadKey) -> None:
        """Load an instance, unless that is in progress or has just failed."""
        if key in self._tasks or self._clock.monotonic() < self._not_before.get(key, 0.0):
            return
        event(log, "background_load_started", model=key.model, replica=key.replica)
        task = asyncio.create_task(self._ensure_loaded(model_config, key))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: LoadKey, task: asyncio.Task[InstanceId]) -> None:
        del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._not_before[key] = self._clock.monotonic() + RETRY_INTERVAL_S
            event(log, "background_load_failed", logging.WARNING, model=key.model, reason=error)

    async def close(self) -> None:
        """Cancel all loads."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


IDLE_DRAIN_TIMEOUT_S = 5.0
"""An idle instance that gets a request just before it is unloaded stays if the request takes longer."""


class Unload(Protocol):
    """Drains and unloads instances; see `Controller.unload`."""

    def __call__(
        self,
        model: str,
        instances: tuple[InstanceView, ...],
        drain_s: float,
        *,
        cancel_requests: bool,
        reason: str,
    ) -> Coroutine[None, None, None]:
        """Drain and unload instances of a model."""
        ...


class Reconciler:
    """Carries out the actions of `DesiredState`.

    Args:
        desired_state: decides what is due.
        ensure_loaded: loads an instance.
        unload: unloads instances.
        is_unloading: returns whether an instance is being unloaded already.
        clock: for intervals.
    """

    def __init__(
        self,
        desired_state: DesiredState,
        ensure_loaded: EnsureLoaded,
        unload: Unload,
        is_unloading: Callable[[InstanceId], bool],
        clock: Clock,
    ) -> None:
        self._desired_state = desired_state
        self._loads = BackgroundLoads(ensure_loaded, clock)
        self._unload = unload
        self._is_unloading = is_unloading
        self._tasks: set[asyncio.Task[None]] = set()

    def reconcile(
        self, snapshot: FleetSnapshot, model_configs: Mapping[str, ModelConfig], now: float
    ) -> None:
        """Start whatever is due.

        Args:
            snapshot: the fleet, with operators' pins.
            model_configs: model configs by model id.
            now: monotonic seconds.
        """
        actions = self._desired_state.actions(snapshot, model_configs.values(), now)
        for key in actions.load:
            self._loads.start(model_configs[key.model], key)
        due = [(view, "idle") for view in actions.unload]
        due += [(view, "surplus") for view in actions.surplus]
        for view, why in due:
            if not self._is_unloading(view.id):
                event(
                    log,
                    "idle_unload_started",
                    model=view.model,
                    node=view.node,
                    instance=view.id,
                    reason=why,
                )
                task = asyncio.create_task(self._unload_idle(view, why))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel all tasks."""
        await self._loads.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _unload_idle(self, view: InstanceView, reason: str) -> None:
        try:
            await self._unload(
                view.model, (view,), IDLE_DRAIN_TIMEOUT_S, cancel_requests=False, reason=reason
            )
        except Exception as error:  # noqa: BLE001 - it is due again with the next round
            event(log, "idle_unload_failed", logging.WARNING, model=view.model, reason=error)
