"""Reads one source of devices with deadlines: a driver call that never returns holds up nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from cortex_common.schema.hardware import DeviceHealth, HostWarning
from cortex_common.schema.instances import InstanceId
from neuron_server.hardware.sample import DeviceSample, DeviceSource, Inventory
from neuron_server.process.blocking import start_blocking

T = TypeVar("T")

_HANGS = "the driver does not respond"


class SourceReader:
    """One source; calls are made one after the other, and none while an earlier one hangs.

    Args:
        source: the source.
    """

    def __init__(self, source: DeviceSource) -> None:
        self._source = source
        self._turn = asyncio.Lock()
        self._running: Future[Any] | None = None
        self._inventory = Inventory()

    async def inventory(self, timeout_s: float) -> Inventory:
        """Find the devices; those of a driver that does not respond are the ones known before."""
        try:
            self._inventory = await self._call(self._source.inventory, timeout_s)
        except TimeoutError:
            warning = HostWarning(
                code="driver_hangs", message=f"{_HANGS}: see dmesg; the host may need a reboot"
            )
            return Inventory(
                devices=self._inventory.devices,
                driver_version=self._inventory.driver_version,
                cuda_version=self._inventory.cuda_version,
                warnings=(warning,),
                complete=False,
            )
        return self._inventory

    async def sample(
        self, pids: Mapping[InstanceId, frozenset[int]], timeout_s: float
    ) -> tuple[DeviceSample, ...]:
        """Read the devices; those of a driver that does not respond are lost, until it does."""
        try:
            return await self._call(partial(self._source.sample, pids), timeout_s)
        except TimeoutError:
            return tuple(
                DeviceSample(
                    device.uuid,
                    used_mb=device.vram_total_mb,
                    free_mb=0,
                    health=DeviceHealth.LOST,
                    reason=_HANGS,
                )
                for device in self._inventory.devices
            )

    async def close(self, timeout_s: float) -> None:
        """Release the driver, unless it hangs."""
        try:
            await self._call(self._source.close, timeout_s)
        except TimeoutError:
            return

    async def _call(self, work: Callable[[], T], timeout_s: float) -> T:
        async with asyncio.timeout(timeout_s), self._turn:
            if self._running is not None and not self._running.done():
                raise TimeoutError(_HANGS)
            future = start_blocking(work)
            self._running = future
            return await asyncio.shield(asyncio.wrap_future(future))
