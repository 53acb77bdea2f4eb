"""Unloading: draining instances, stopping their engines, and waiting until their memory is free."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from cortex_common.backoff import Backoff
from cortex_common.clock import Clock
from cortex_common.errors import InstanceBusy
from cortex_common.schema.instances import InstanceState
from neuron_server.inflight import InflightCounts
from neuron_server.instances.registry import ManagedInstance, Stop
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import Instance, advance

_IDLE_POLL_S = 0.1
_IDLE_POLLS = 2
_FREED_POLL_S = 0.1
_FREED_TIMEOUT_S = 15.0
_NOISE_MB = 8
_RETRY_BACKOFF = Backoff(initial_s=0.2, max_s=10.0)


class Unloader:
    """Stops instances, each of them once, however many callers request it.

    Args:
        inflight: the requests in flight of each instance.
        host: the runtime.
        clock: measures durations.
        free_mb: returns the free MiB of devices as of the latest reading.
        before_stop: called with an instance before its engine is stopped.
        stopping: the context in which an instance's engine is stopped: see `device_order`.
        after_stop: called with an instance once its memory is free.
    """

    def __init__(
        self,
        inflight: InflightCounts,
        host: RunnerHost,
        clock: Clock,
        *,
        free_mb: Callable[[Sequence[int]], list[int]],
        before_stop: Callable[[Instance], None],
        stopping: Callable[[Instance], AbstractAsyncContextManager[None]],
        after_stop: Callable[[Instance], None],
    ) -> None:
        self._inflight = inflight
        self._host = host
        self._clock = clock
        self._free_mb = free_mb
        self._before_stop = before_stop
        self._stopping = stopping
        self._after_stop = after_stop

    async def unload(self, managed: ManagedInstance, drain_s: float, *, force: bool = True) -> None:
        """Drain and stop an instance; return once its memory is measured free.

        A stop that is under way takes the shorter drain, so that no caller waits for an earlier request's longer drain.

        Args:
            managed: the instance.
            drain_s: seconds to wait for requests in flight.
            force: abort requests that are still in flight after that.

        Raises:
            InstanceBusy: requests are still in flight and must not be cut.
        """
        deadline = self._clock.monotonic() + drain_s
        if managed.stop is None:
            managed.stop = Stop(deadline, force)
            managed.stop.task = asyncio.create_task(
                self._unload(managed, managed.stop), name=f"stop of {managed.instance.id}"
            )
        else:
            managed.stop.tighten(deadline, force=force)
        assert managed.stop.task is not None
        if not await asyncio.shield(managed.stop.task):
            raise InstanceBusy.after_drain(managed.instance.id, drain_s)

    async def _unload(self, managed: ManagedInstance, stop: Stop) -> bool:
        """Return whether the instance was stopped; a busy one that must not be cut becomes ready again."""
        try:
            if not await self._drain(managed, stop):
                return False
            await self._stop(managed)
        finally:
            managed.stop = None
        model = managed.instance.spec.model_id
        self._after_stop(managed.instance)
        self._host.record_event("instance_unloaded", instance=managed.instance.id, model=model)
        return True

    async def _drain(self, managed: ManagedInstance, stop: Stop) -> bool:
        """Return whether the instance can be stopped now."""
        serving = managed.instance.state is InstanceState.READY
        if not serving or (stop.force and stop.deadline <= self._clock.monotonic()):
            return True
        self._host.update(advance(managed.instance, InstanceState.DRAINING))
        idle = await wait_until_idle(
            self._clock, lambda: stop.deadline, lambda: self._inflight.refresh(managed)
        )
        if idle or stop.force or managed.instance.state is not InstanceState.DRAINING:
            return True
        self._host.update(advance(managed.instance, InstanceState.READY))
        return False

    async def _stop(self, managed: ManagedInstance) -> None:
        """Stop the engine in its turn, and wait until its memory is free."""
        stopping = self._stopping(managed.instance)
        if managed.instance.state is not InstanceState.STOPPING:
            self._host.update(advance(managed.instance, InstanceState.STOPPING))
        instance = managed.instance
        self._host.record_event(
            "unload_started", instance=instance.id, model=instance.spec.model_id
        )
        self._before_stop(instance)
        async with stopping:
            await self._stop_engine(managed)
            if any(managed.instance.measured_mb):
                await wait_until_freed(
                    self._clock, lambda: self._measure_free_mb(managed.instance.devices)
                )
            else:
                await self._host.measure()

    async def _stop_engine(self, managed: ManagedInstance) -> None:
        """Stop the engine, and try again until that has succeeded: its memory is not free before."""
        for failures in itertools.count(1):
            try:
                await managed.runner.stop()
                break
            except Exception as error:  # noqa: BLE001 - whatever it is, such as a lack of descriptors, can pass
                with contextlib.suppress(Exception):
                    self._host.record_event(
                        "engine_stop_failed",
                        logging.ERROR,
                        instance=managed.instance.id,
                        reason=error,
                    )
                await asyncio.sleep(_RETRY_BACKOFF.delay_s(failures))

    async def _measure_free_mb(self, devices: Sequence[int]) -> list[int]:
        await self._host.measure()
        return self._free_mb(devices)


async def wait_until_idle(
    clock: Clock, deadline: Callable[[], float], in_flight: Callable[[], Awaitable[int | None]]
) -> bool:
    """Wait until an engine has no requests in flight; return False if it is still busy at the deadline.

    Two consecutive polls must agree, because a request can be on its way in. An engine that reports no count is
    treated as idle.
    """
    idle_polls = 0
    while True:
        idle_polls = 0 if await in_flight() else idle_polls + 1
        if idle_polls == _IDLE_POLLS:
            return True
        if not idle_polls and clock.monotonic() >= deadline():
            return False
        await asyncio.sleep(_IDLE_POLL_S)


async def wait_until_freed(clock: Clock, free_mb: Callable[[], Awaitable[list[int]]]) -> None:
    """Wait until free memory stops rising: drivers release it some time after the process has ended."""
    deadline = clock.monotonic() + _FREED_TIMEOUT_S
    before = await free_mb()
    while clock.monotonic() < deadline:
        await asyncio.sleep(_FREED_POLL_S)
        now = await free_mb()
        if all(new <= old + _NOISE_MB for new, old in zip(now, before, strict=True)):
            return
        before = now
