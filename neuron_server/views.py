"""Wire representations of instances and devices (pure functions)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.hardware import (
    Device,
    DeviceHealth,
    Discovery,
    Health,
    HostWarning,
)
from cortex_common.schema.instances import InstanceState, ModelId, ModelInfo
from neuron_server.instances.state_machine import Instance

_REACHABLE = {InstanceState.READY, InstanceState.DRAINING}


def with_settings(config: NeuronConfig, device: Device) -> Device:
    """Return a device with its labels and its cordon from neuron.toml."""
    entry = next((e for e in config.devices if e.uuid == device.uuid), None)
    if entry is None:
        return device
    return device.model_copy(update={"labels": entry.labels, "cordoned": entry.cordon})


def model_info(
    instance: Instance,
    url: str,
    footprint_mb: tuple[int, ...],
    in_flight: int,
    idle_s: float | None,
    now: float,
    api_key: str | None = None,
) -> ModelInfo:
    """Return one entry of GET /models.

    Args:
        instance: the instance.
        url: base URL for its requests.
        footprint_mb: MiB allocated or reserved for it on each of its devices.
        in_flight: requests in flight on it, as far as the node knows.
        idle_s: seconds since it was last used; None if unknown.
        now: Unix seconds, to compute the remaining time of a load.
        api_key: key for requests to `url`; None if they need none.
    """
    reachable = instance.state in _REACHABLE
    loading = instance.state is InstanceState.LOADING
    eta = None
    if loading and instance.expected_load_s is not None:
        remaining = round(instance.expected_load_s - (now - instance.started_at), 1)
        # Past loads say nothing about a load that takes longer than they did.
        eta = remaining if remaining > 0 else None
    return ModelInfo(
        id=ModelId(instance.spec.model_id),
        harness=instance.spec.harness,
        status=instance.state,
        devices=instance.devices,
        vram_used_mb=sum(footprint_mb),
        instance_id=instance.id,
        url=url if reachable else None,
        api_key=api_key if reachable else None,
        context=instance.context or instance.spec.context,
        parallel=instance.parallel or instance.spec.parallel,
        vram_by_device=footprint_mb,
        vram_measured_mb=instance.measured_mb,
        vram_peak_mb=instance.peak_mb,
        vram_granted_mb=instance.granted_mb,
        vram_budget_mb=instance.budget_mb,
        grows=instance.grows,
        failure=instance.failure,
        config=instance.spec.config,
        progress=instance.progress,
        stage=instance.stage,
        eta_s=eta,
        load_seconds=instance.load_seconds,
        in_flight=in_flight,
        idle_s=0.0 if in_flight else None if idle_s is None else round(idle_s, 1),
        error=instance.error,
        engine_version=instance.engine_version,
        served_as=instance.served_as,
        started_at=instance.started_at,
    )


def fingerprint(discovery: Discovery) -> str:
    """Return a value that changes whenever the body of GET /discovery changes."""
    return f"{zlib.crc32(discovery.model_dump_json().encode()):08x}"


def lost_device_warnings(health: Health, devices: Sequence[Device]) -> tuple[HostWarning, ...]:
    """Return a warning for each device that does not respond."""
    return tuple(
        HostWarning(
            code="gpu_lost",
            message=f"GPU {device.index} ({device.name}) is lost: {reading.reason}; check dmesg for its XID error",
        )
        for device, reading in zip(devices, health.devices, strict=True)
        if reading.health is DeviceHealth.LOST
    )
