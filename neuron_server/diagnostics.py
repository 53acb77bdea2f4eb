"""Diagnostics of GPUs and engine programs, reported as host warnings and events."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, HostWarning
from neuron_server.event_log import EventLog
from neuron_server.hardware.host import Host, Reading
from neuron_server.hardware.xid import describe_xid, is_engine_fault
from neuron_server.harness.base import Harness
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.instances.state_machine import Instance
from neuron_server.process.program import build_id, linked_cuda_version

CHECK_INTERVAL_S = 60.0


class HardwareFaults:
    """XID errors since the neuron started, and GPUs that were lost or recovered.

    Args:
        events: receives an event for each fault.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._devices: dict[str, Device] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._lost: set[str] = set()

    def update(self, reading: Reading, instances: Collection[Instance]) -> None:
        """Record the faults of a reading; call once per reading."""
        for device, sample in zip(reading.devices, reading.samples, strict=True):
            affected = ", ".join(str(i.id) for i in instances if device.index in i.devices) or None
            lost = sample.health is DeviceHealth.LOST
            if lost != (device.uuid in self._lost):
                self._lost ^= {device.uuid}
                event, level = (
                    ("gpu_lost", logging.ERROR) if lost else ("gpu_recovered", logging.INFO)
                )
                self._events.record(
                    event, level, device=device.index, reason=sample.reason, instances=affected
                )
            for xid in sample.xids:
                self._events.record(
                    "xid_error",
                    logging.WARNING,
                    device=device.index,
                    xid=xid,
                    meaning=describe_xid(xid),
                    instances=affected,
                )
                self._devices[device.uuid] = device
                self._counts[device.uuid, xid] += 1

    def warnings(self) -> Iterator[HostWarning]:
        """Yield a warning for each device and XID, except XIDs caused by the engines themselves."""
        for (uuid, xid), count in self._counts.items():
            if is_engine_fault(xid):
                continue
            device, times = self._devices[uuid], "once" if count == 1 else f"{count} times"
            yield HostWarning(
                code="xid_error",
                message=f"GPU {device.index} ({device.name}): XID {xid}, {times} since the neuron started: "
                f"{describe_xid(xid)}",
            )


class EngineChecks:
    """Checks whether the engines' programs can use this host's GPUs.

    A check starts the program, so it runs in a background task and passing programs are not checked again until they
    are replaced.

    Args:
        registry: the configured harnesses.
        host: the devices that the engines run on.

    Attributes:
        warnings: the problems that the last check found.
    """

    def __init__(self, registry: HarnessRegistry, host: Host) -> None:
        self.warnings: tuple[HostWarning, ...] = ()
        self._registry = registry
        self._host = host
        self._passed: dict[str, tuple[str, int]] = {}

    async def run(self, on_change: Callable[[], None]) -> None:
        """Check periodically, because programs are replaced and drivers are loaded later."""
        while True:
            before = self.warnings
            await self.check()
            if self.warnings != before:
                on_change()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check(self) -> None:
        """Check all programs except those that passed and have not been replaced since."""
        warnings: list[HostWarning] = []
        if any(device.kind is DeviceKind.CUDA for device in self._host.devices):
            for name in self._registry.names:
                harness = self._registry.get(name).harness
                build = build_id(harness.program) if harness.program else None
                if build is None or self._passed.get(name) == build:
                    continue
                if warning := await _check_program(harness, build[0], self._host.cuda_version):
                    warnings.append(warning)
                else:
                    self._passed[name] = build
        self.warnings = tuple(warnings)


async def _check_program(
    harness: Harness, program: str, driver_cuda: str | None
) -> HostWarning | None:
    built_for = await linked_cuda_version(program)
    if built_for and driver_cuda and built_for > int(driver_cuda.partition(".")[0]):
        return HostWarning(
            code="engine_cuda_mismatch",
            message=f"{harness.name}: {program} is built for CUDA {built_for} but the driver supports {driver_cuda}: "
            "install a matching build or a newer driver",
        )
    if DeviceKind.CUDA in harness.capabilities.kinds and (
        reason := await harness.cpu_only_reason()
    ):
        return HostWarning(code="engine_without_gpu", message=f"{harness.name}: {reason}")
    return None
