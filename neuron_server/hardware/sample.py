"""What any source of devices tells: an inventory once, samples again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cortex_common.schema.hardware import Device, DeviceHealth, HostWarning
from cortex_common.schema.instances import InstanceId


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is there. `devices` are numbered from 0 within their source.

    Attributes:
        driver_version: of the NVIDIA driver.
        cuda_version: the highest that the driver offers, such as "13.0".
        warnings: what an operator should mend.
    """

    devices: tuple[Device, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    warnings: tuple[HostWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One device at one moment; MiB.

    Attributes:
        by_instance: MiB used by each instance's processes; an instance is missing where the driver can't tell.
        reason: why the device is not healthy.
        pool_free_mb: MiB that the host has left, for a device that shares its memory.
        xids: errors that the driver reported since the sample before.
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
    pool_free_mb: int | None = None
    xids: tuple[int, ...] = ()


class DeviceSource(Protocol):
    """A kind of hardware. Every call may block for milliseconds and is made from one thread."""

    def inventory(self) -> Inventory:
        """What is there now; called again to find a driver that was loaded later."""
        ...

    def sample(self, trees: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Read all devices; `trees` are the pids of each instance's processes. Never raises."""
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
