"""How an engine is told which devices are its own."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_common.schema.hardware import Device, DeviceKind


def device_environment(devices: Sequence[Device]) -> dict[str, str]:
    """Variables that show an engine its GPUs only, by UUID; none at all on the cpu device.

    CUDA's own order puts the fastest card first, NVML counts by PCI bus: with PCI_BUS_ID both agree. Inside the
    engine its devices are always 0, 1, ...
    """
    gpus = [device.uuid for device in devices if device.kind is DeviceKind.CUDA]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def gpu_count(devices: Sequence[Device]) -> int:
    """How many GPUs an engine gets."""
    return sum(device.kind is DeviceKind.CUDA for device in devices)
