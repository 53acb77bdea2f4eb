"""The interface of a source of devices: an inventory, and samples of each device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cortex_common.schema.hardware import Device, DeviceHealth, HostWarning
from cortex_common.schema.instances import InstanceId


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a source.

    Attributes:
        devices: the devices, with indices from 0 within the source.
        driver_version: version of the NVIDIA driver.
        cuda_version: highest CUDA version that the driver supports, such as "13.0".
        warnings: problems that an operator should fix.
        complete: every device was found, as far as the source can tell; otherwise it is asked again later.
    """

    devices: tuple[Device, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    warnings: tuple[HostWarning, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device at one moment; sizes are MiB.

    Attributes:
        by_instance: memory used by each instance's processes; lacks instances whose use the driver can't attribute.
        attributes_memory: the driver attributes memory to processes of this host, as far as is known.
        reason: why the device is not healthy.
        gone: the device fell off the bus or must be reset, so that no engine on it can work.
        pool_free_mb: the host's available memory, for a device that shares it.
        xids: XID errors that the driver reported since the previous sample.
    """

    uuid: str
    used_mb: int
    free_mb: int
    utilization_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    by_instance: Mapping[InstanceId, int] = field(default_factory=dict)
    health: DeviceHealth = DeviceHealth.OK
    reason: str | None = None
    gone: bool = False
    pool_free_mb: int | None = None
    xids: tuple[int, ...] = ()
    attributes_memory: bool = True


class DeviceSource(Protocol):
    """A kind of hardware. Every call can block, for ever if the driver hangs; one call is made at a time."""

    def inventory(self) -> Inventory:
        """Find the devices; called again later to find a driver that was loaded in the meantime."""
        ...

    def sample(self, pids: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Read all devices; `pids` are those of each instance's processes. Never raises."""
        ...

    def close(self) -> None:
        """Release the driver."""
        ...
