"""The health report of a node: readings of its devices, and what of their memory is reserved or available. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cortex_common.config.neuron import NeuronConfig, parse_headroom_mib
from cortex_common.schema.hardware import Device, DeviceKind, DeviceReading, Health
from neuron_server.hardware.host import Reading
from neuron_server.memory.ledger import DeviceMemory, Grant, compute_accounts

_CPU_HEADROOM = "10%"


def headroom_mb(config: NeuronConfig, device: Device) -> int:
    """Return the MiB that the operator wants kept free on a device."""
    if device.kind is DeviceKind.CPU:
        default = "0%" if config.cpu.memory_mb is not None else _CPU_HEADROOM
        return parse_headroom_mib(config.cpu.headroom or default, device.vram_total_mb)
    override = next((e.headroom for e in config.devices if e.uuid == device.uuid), None)
    return parse_headroom_mib(override or config.memory.headroom, device.vram_total_mb)


def health(
    uptime_s: float, reading: Reading, memory: Sequence[DeviceMemory], grants: Sequence[Grant]
) -> Health:
    """Return the body of GET /health."""
    devices = tuple(
        DeviceReading(
            index=account.memory.index,
            vram_used_mb=sample.used_mb,
            vram_free_mb=sample.free_mb,
            utilization_pct=sample.utilization_pct,
            temp_c=sample.temp_c,
            power_w=sample.power_w,
            vram_reserved_mb=account.reserved_mb,
            vram_other_mb=account.other_mb,
            vram_headroom_mb=account.memory.headroom_mb,
            vram_available_mb=account.available_mb,
            health=sample.health,
            reason=sample.reason,
        )
        for account, sample in zip(compute_accounts(memory, grants), reading.samples, strict=True)
    )
    return Health(uptime_secs=round(uptime_s, 3), devices=devices, at=reading.at)
