"""The host's processor and RAM as one device, with real books: RSS of engines against what the host offers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import psutil

from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import InstanceId
from cortex_common.units import BYTES_PER_MIB
from neuron_server.hardware.sample import DeviceSample, Inventory
from neuron_server.process.process_table import read_table

CPU_UUID = "CPU-0"


class CpuSource:
    """One device of kind cpu.

    Free is the smaller of what the offer has left and what the host really has left, so the device is honest
    both as a budget ("use at most 8 GiB") and on a host that is short of memory for other reasons.

    Args:
        memory_mb: MiB of RAM that engines may use together; None offers all of it.
    """

    def __init__(self, memory_mb: int | None) -> None:
        host_mb = psutil.virtual_memory().total // BYTES_PER_MIB
        self._total_mb = min(memory_mb or host_mb, host_mb)
        psutil.cpu_percent(None)  # the first call only sets the mark that the next measures from

    def inventory(self) -> Inventory:
        """The one device."""
        device = Device(
            index=0,
            uuid=CPU_UUID,
            kind=DeviceKind.CPU,
            name=_processor_name(),
            vram_total_mb=self._total_mb,
            unified=True,
        )
        return Inventory(devices=(device,))

    def sample(self, trees: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Resident memory of each instance's process tree, and what the host has left."""
        table = read_table()
        ours = {instance: table.rss_mb(pids) for instance, pids in trees.items()}
        available = psutil.virtual_memory().available // BYTES_PER_MIB
        free = max(0, min(self._total_mb - sum(ours.values()), available))
        sample = DeviceSample(
            uuid=CPU_UUID,
            used_mb=self._total_mb - free,
            free_mb=free,
            utilization_pct=round(psutil.cpu_percent(None)),
            by_instance=ours,
            pool_free_mb=available,
        )
        return (sample,)

    def close(self) -> None:
        """Nothing is held."""


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine() or "CPU"
