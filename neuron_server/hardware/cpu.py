"""The host's CPU and RAM as one device: resident memory of engines against the offered RAM."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import psutil

from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import InstanceId
from cortex_common.units import BYTES_PER_MIB
from neuron_server.hardware.host_memory import read_host_memory
from neuron_server.hardware.sample import DeviceSample, Inventory
from neuron_server.process.process_table import read_table

CPU_UUID = "CPU-0"


class CpuSource:
    """A source with one device of kind cpu.

    Its free memory is the smaller of what is left of the offered RAM and what the host has available, so that the
    device works both as a budget ("use at most 8 GiB") and on a host whose memory is used by other processes.

    Args:
        memory_mb: MiB of RAM that all engines together can use; None offers all of it.
    """

    def __init__(self, memory_mb: int | None) -> None:
        host_mb = read_host_memory().total // BYTES_PER_MIB
        self._total_mb = min(memory_mb or host_mb, host_mb)
        psutil.cpu_percent(None)  # the first call only sets the reference for the next

    def inventory(self) -> Inventory:
        """Return the inventory: one device."""
        device = Device(
            index=0,
            uuid=CPU_UUID,
            kind=DeviceKind.CPU,
            name=_processor_name(),
            vram_total_mb=self._total_mb,
            unified=True,
        )
        return Inventory(devices=(device,))

    def sample(self, pids: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Measure the resident memory of each instance's processes, and the host's available memory."""
        table = read_table()
        by_instance = {instance: table.rss_mb(of) for instance, of in pids.items()}
        available = read_host_memory().available // BYTES_PER_MIB
        free = max(0, min(self._total_mb - sum(by_instance.values()), available))
        sample = DeviceSample(
            uuid=CPU_UUID,
            used_mb=self._total_mb - free,
            free_mb=free,
            utilization_pct=round(psutil.cpu_percent(None)),
            by_instance=by_instance,
            pool_free_mb=available,
        )
        return (sample,)

    def close(self) -> None:
        """Do nothing; no resources are held."""


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine() or "CPU"
