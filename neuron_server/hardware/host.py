"""All devices of this host with common indices, read on a dedicated thread."""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Mapping, Sequence
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
from neuron_server.hardware.source_reader import SourceReader
from neuron_server.process.process_table import ProcessFinder, read_table

_REDISCOVERY_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Reading:
    """All devices at one moment.

    Attributes:
        at: Unix seconds.
        devices: the devices.
        samples: a sample of each device, in the same order.
        pids: the pids that were attributed to each instance.
    """

    at: float
    devices: tuple[Device, ...]
    samples: tuple[DeviceSample, ...]
    pids: Mapping[InstanceId, frozenset[int]]


class Host:
    """The devices of several sources, each read aside, because a driver can block for milliseconds or for ever.

    Args:
        sources: the cpu source last, so that adding it does not change the indices of GPUs.
        clock: provides the readings' timestamps.
        read_timeout_s: seconds after which a source that does not respond is left out of a reading.
        discovery_timeout_s: the same for the search for devices: a driver without persistence mode takes seconds.
    """

    def __init__(
        self,
        sources: Sequence[DeviceSource],
        clock: Clock,
        *,
        read_timeout_s: float = 5.0,
        discovery_timeout_s: float = 30.0,
    ) -> None:
        self._readers = tuple(SourceReader(source) for source in sources)
        self._clock = clock
        self._read_timeout_s = read_timeout_s
        self._discovery_timeout_s = discovery_timeout_s
        self._inventory = Inventory()
        self._discovered_at = 0.0
        self._degraded = False
        self._attributes_memory = True

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices, with indices across all sources."""
        return self._inventory.devices

    async def open(self) -> None:
        """Find the devices."""
        await self._discover()

    async def close(self) -> None:
        """Release the drivers; one that hangs is left alone."""
        await asyncio.gather(*(reader.close(self._read_timeout_s) for reader in self._readers))

    async def read(self, finders: Mapping[InstanceId, ProcessFinder]) -> Reading:
        """Read all devices now; those of a driver that does not respond are reported as lost.

        Args:
            finders: find each instance's processes.
        """
        if (
            self._degraded
            and self._clock.monotonic() - self._discovered_at > _REDISCOVERY_INTERVAL_S
        ):
            await (
                self._discover()
            )  # a driver may have been loaded, or a GPU may be back after a reset
        pids = await asyncio.to_thread(_find_processes, dict(finders))
        found = await asyncio.gather(
            *(reader.sample(pids, self._read_timeout_s) for reader in self._readers)
        )
        by_uuid = {s.uuid: s for samples in found for s in samples}
        devices = self.devices
        samples = tuple(by_uuid.get(d.uuid) or _missing_sample(d) for d in devices)
        self._degraded = (
            not samples
            or not self._inventory.complete
            or any(s.health is not DeviceHealth.OK for s in samples)
        )
        if not all(s.attributes_memory for s in samples):
            self._attributes_memory = False
        return Reading(self._clock.unix(), devices, samples, pids)

    @property
    def attributes_memory(self) -> bool:
        """Whether the driver attributes memory to processes, as far as is known."""
        return self._attributes_memory

    @property
    def cuda_version(self) -> str | None:
        """The highest CUDA version that the driver supports, such as "13.0"."""
        return self._inventory.cuda_version

    def discovery(
        self,
        harnesses: Mapping[str, HarnessInfo],
        warnings: tuple[HostWarning, ...] = (),
    ) -> Discovery:
        """Return the body of GET /discovery.

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

    async def _discover(self) -> None:
        """Find the devices; known devices keep their indices, which instances refer to, and new ones follow."""
        inventories = await asyncio.gather(
            *(reader.inventory(self._discovery_timeout_s) for reader in self._readers)
        )
        new = {device.uuid: device for i in inventories for device in i.devices}
        known = [new.pop(device.uuid, device) for device in self.devices]
        self._inventory = Inventory(
            devices=tuple(
                device.model_copy(update={"index": index})
                for index, device in enumerate([*known, *new.values()])
            ),
            driver_version=next((i.driver_version for i in inventories if i.driver_version), None),
            cuda_version=next((i.cuda_version for i in inventories if i.cuda_version), None),
            warnings=tuple(warning for i in inventories for warning in i.warnings),
            complete=all(i.complete for i in inventories),
        )
        self._discovered_at = self._clock.monotonic()


def _find_processes(
    finders: Mapping[InstanceId, ProcessFinder],
) -> Mapping[InstanceId, frozenset[int]]:
    table = read_table()
    return {instance: find(table) for instance, find in finders.items()}


def _missing_sample(device: Device) -> DeviceSample:
    return DeviceSample(
        device.uuid,
        used_mb=device.vram_total_mb,
        free_mb=0,
        health=DeviceHealth.LOST,
        reason="the driver no longer lists it",
        gone=True,
    )


def card_key(devices: Sequence[Device]) -> str:
    """Return a key of the types of some devices, under which sizes are learned."""
    return "+".join(sorted({f"{d.kind}:{d.name}" for d in devices}))


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
