"""The memory of instances over their lives: their turns on devices, restarts, and what their loads teach."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from cortex_common.clock import Clock
from cortex_common.errors import DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.hardware.host import Host
from neuron_server.instances.registry import InstanceRegistry
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import Instance
from neuron_server.memory.accounting import MemoryAccounting
from neuron_server.memory.device_order import DeviceOrder
from neuron_server.state_store import PastLoad, StateDir

_RETRY_INTERVAL_S = 1.0
_FREED_TIMEOUT_S = 15.0
_STOP_WAIT_S = 60.0
"""Seconds that a stop waits for an engine that is loading on the same device and sizes itself."""


class InstanceMemory:
    """Orders starts and stops on devices, admits restarts, and saves what loads took.

    Args:
        memory: the ledger with the latest reading.
        host: the runtime, for current snapshots and measurements.
        instances: the node's instances.
        devices: the node's devices.
        state: keeps what loads took.
        clock: for deadlines.
    """

    def __init__(
        self,
        memory: MemoryAccounting,
        host: RunnerHost,
        instances: InstanceRegistry,
        devices: Host,
        state: StateDir,
        clock: Clock,
    ) -> None:
        self._memory = memory
        self._host = host
        self._instances = instances
        self._devices = devices
        self._state = state
        self._clock = clock
        self._device_order = DeviceOrder()

    def held_mb(self, instance: InstanceId) -> int:
        """Return the MiB per device that an instance holds or has reserved."""
        return self._memory.held_mb(self._host.current(instance))

    async def readmit(self, instance: InstanceId) -> None:
        """Reserve memory for the restart of an instance's engine.

        Raises:
            DoesNotFit: another process has taken the memory meanwhile.
        """
        restarting = self._host.current(instance)
        past = self._past_load(restarting) or PastLoad()
        too_small = -1 if past.too_small_mb is None else past.too_small_mb
        used = restarting.peak_mb or restarting.granted_mb
        size = max(used, restarting.held_mb or 0, too_small + 1)
        deadline = self._clock.monotonic() + _FREED_TIMEOUT_S
        while True:
            await self._host.measure()
            restarting = self._host.current(instance)
            try:
                granted = self._memory.readmit(restarting, size, self._instances.snapshots)
            except DoesNotFit:
                if self._clock.monotonic() >= deadline:
                    raise
                await asyncio.sleep(
                    _RETRY_INTERVAL_S
                )  # drivers free memory some time after an engine ends
            else:
                self._host.update(dataclasses.replace(restarting, granted_mb=granted, held_mb=None))
                return

    @contextlib.asynccontextmanager
    async def loading(self, instance: InstanceId) -> AsyncIterator[None]:
        """Wait for the instance's turn on its devices, and attribute memory to it once it is loaded."""
        managed = self._instances[instance]
        devices = self._gpus(managed.instance)
        if not devices or managed.runner.engine is not None:
            yield
            return
        exclusive = (
            managed.entry.harness.capabilities.sizes_itself or not self._devices.attributes_memory
        )
        if self._device_order.must_wait(devices, exclusive=exclusive):
            stage = "waiting for another engine that starts or stops on its device"
            self._host.update(dataclasses.replace(managed.instance, stage=stage))
        async with self._device_order.turn(devices, exclusive=exclusive) as turn:
            await self._host.measure()
            before = self._memory.used_mb(devices)
            yield
            if turn.alone and not self._memory.is_attributed(managed.instance):
                attributed = self._memory.attribute(managed.instance, before)
                managed.instance = self._memory.with_measurements(attributed)

    @contextlib.asynccontextmanager
    async def stopping(self, instance: Instance) -> AsyncIterator[None]:
        """Wait until no engine that must not be disturbed is loading on an instance's devices."""
        own_load = instance.state is InstanceState.LOADING
        wait_s = 0.0 if own_load else _STOP_WAIT_S
        async with self._device_order.turn(self._gpus(instance), exclusive=False, wait_s=wait_s):
            yield

    def _gpus(self, instance: Instance) -> tuple[int, ...]:
        cuda = DeviceKind.CUDA
        return tuple(i for i in instance.devices if self._memory.device_kind(i) is cuda)

    def _past_load(self, instance: Instance) -> PastLoad | None:
        return self._state.past_load(instance.spec, self._memory.card_key(instance.devices))

    def save_past_load(self, instance: Instance) -> None:
        """Save what a load took, for future loads."""
        if instance.load_seconds is not None and instance.devices and not instance.attached:
            load = PastLoad(
                seconds=instance.load_seconds,
                per_device_mb=instance.peak_mb or None,
                budget_mb=instance.budget_mb,
            )
            self._state.save_past_load(instance.spec, self._memory.card_key(instance.devices), load)

    def save_out_of_memory(self, instance: Instance) -> None:
        """Save that an instance's engine ran out of memory with what it was granted and used."""
        if not instance.devices or instance.attached:
            return
        empty = self._memory.empty_mb(instance.devices, self._instances.snapshots)
        too_small = min(max(instance.granted_mb, instance.peak_mb), max(0, empty - 1))
        past = self._past_load(instance) or PastLoad()
        load = past.model_copy(update={"too_small_mb": max(too_small, past.too_small_mb or 0)})
        self._state.save_past_load(instance.spec, self._memory.card_key(instance.devices), load)
