"""All devices of this host behind one numbering, read on a thread of their own."""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cortex_common import __version__
from cortex_common.clock import Clock
from cortex_common.schema.hardware import (
    Device,
    DeviceHealth,
    Discovery,
    HarnessInfo,
    HostWarning,
)
from cortex_common.schema.instances import InstanceId
from neuron_server.hardware.sample import DeviceSample, DeviceSource, Inventory
from neuron_server.process.process_table import TreeOf, read_table

_LOOK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Reading:
    """All devices at one moment.

    Attributes:
        at: Unix seconds.
        samples: of each of `devices`, in their order.
        trees: the pids that were counted for each instance.
    """

    at: float
    devices: tuple[Device, ...]
    samples: tuple[DeviceSample, ...]
    trees: Mapping[InstanceId, frozenset[int]]


class Host:
    """The devices of some sources. NVML calls block, so they are made on one thread, one after another.

    Args:
        sources: the cpu's last, so that adding it renumbers no GPU.
        clock: for the times of readings.
    """

    def __init__(self, sources: Sequence[DeviceSource], clock: Clock) -> None:
        self._sources = tuple(sources)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hardware")
        self._inventory = Inventory()
        self._looked_at = 0.0
        self._amiss = False

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, numbered over all sources."""
        return self._inventory.devices

    async def open(self) -> None:
        """Find the devices."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._look)

    async def close(self) -> None:
        """Let go of drivers and thread."""
        loop = asyncio.get_running_loop()
        for source in self._sources:
            await loop.run_in_executor(self._thread, source.close)
        self._thread.shutdown()

    async def read(self, trees: Mapping[InstanceId, TreeOf]) -> Reading:
        """Read all devices now.

        Args:
            trees: finds each instance's processes.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, dict(trees)
        )

    @property
    def cuda_version(self) -> str | None:
        """The highest that the driver offers."""
        return self._inventory.cuda_version

    def discovery(
        self,
        harnesses: Mapping[str, HarnessInfo],
        warnings: tuple[HostWarning, ...] = (),
    ) -> Discovery:
        """Return the answer of GET /discovery.

        Args:
            harnesses: the node's harnesses, by name.
            warnings: warnings about engines, added to those about devices.
        """
        return Discovery(
            hostname=socket.gethostname(),
            os=_os_name(),
            kernel=platform.release(),
            cuda_version=self._inventory.cuda_version,
            driver_version=self._inventory.driver_version,
            devices=self.devices,
            harnesses=tuple(harnesses),
            harness_info=dict(harnesses),
            neuron_version=__version__,
            warnings=(*self._inventory.warnings, *warnings),
        )

    def _look(self) -> None:
        """Find devices. Those known before keep their numbers, for instances stand on them; new ones come after."""
        inventories = [source.inventory() for source in self._sources]
        found = {device.uuid: device for i in inventories for device in i.devices}
        known = [found.pop(device.uuid, device) for device in self.devices]
        self._inventory = Inventory(
            devices=tuple(
                device.model_copy(update={"index": index})
                for index, device in enumerate([*known, *found.values()])
            ),
            driver_version=next((i.driver_version for i in inventories if i.driver_version), None),
            cuda_version=next((i.cuda_version for i in inventories if i.cuda_version), None),
            warnings=tuple(warning for i in inventories for warning in i.warnings),
        )
        self._looked_at = self._clock.monotonic()

    def _read(self, finders: dict[InstanceId, TreeOf]) -> Reading:
        if self._amiss and self._clock.monotonic() - self._looked_at > _LOOK_AGAIN_S:
            self._look()  # the driver may be loaded long after the neuron, a reset card may be back
        table = read_table()
        trees = {instance: find(table) for instance, find in finders.items()}
        by_uuid = {s.uuid: s for source in self._sources for s in source.sample(trees)}
        devices = self.devices
        samples = tuple(by_uuid.get(d.uuid) or _vanished(d) for d in devices)
        self._amiss = not samples or any(s.health is not DeviceHealth.OK for s in samples)
        return Reading(self._clock.unix(), devices, samples, trees)


def _vanished(device: Device) -> DeviceSample:
    return DeviceSample(
        device.uuid,
        used_mb=device.vram_total_mb,
        free_mb=0,
        health=DeviceHealth.LOST,
        reason="the driver does not list it any more",
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
