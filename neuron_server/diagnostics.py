"""Whether the programs of the engines can use this host's GPUs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, HostWarning
from neuron_server.event_log import EventLog
from neuron_server.hardware.host import Host, Reading
from neuron_server.hardware.xid import is_of_engine, meaning
from neuron_server.harness.base import Harness
from neuron_server.harness.registry import Registry
from neuron_server.instances.state_machine import Instance
from neuron_server.process.program import build_of, linked_cuda


class HardwareFaults:
    """XID errors since the neuron's start, and cards that were lost or came back.

    Args:
        journal: told of each.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._devices: dict[str, Device] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._lost: set[str] = set()

    def enter(self, reading: Reading, instances: Collection[Instance]) -> None:
        """Take up what a reading brought; each reading once."""
        for device, sample in zip(reading.devices, reading.samples, strict=True):
            here = ", ".join(str(i.id) for i in instances if device.index in i.devices) or None
            lost = sample.health is DeviceHealth.LOST
            if lost != (device.uuid in self._lost):
                self._lost ^= {device.uuid}
                event, level = (
                    ("gpu_lost", logging.ERROR) if lost else ("gpu_recovered", logging.INFO)
                )
                self._events.note(
                    event, level, device=device.index, reason=sample.reason, instances=here
                )
            for xid in sample.xids:
                self._events.note(
                    "xid_error",
                    logging.WARNING,
                    device=device.index,
                    xid=xid,
                    meaning=meaning(xid),
                    instances=here,
                )
                self._devices[device.uuid] = device
                self._counts[device.uuid, xid] += 1

    def warnings(self) -> Iterator[HostWarning]:
        """One for each kind of error that a card had; an engine's own faults are no trouble of the host."""
        for (uuid, xid), count in self._counts.items():
            if is_of_engine(xid):
                continue
            device, times = self._devices[uuid], "once" if count == 1 else f"{count} times"
            yield HostWarning(
                code="xid_error",
                message=f"GPU {device.index} ({device.name}): XID {xid}, {times} since the neuron started: "
                f"{meaning(xid)}",
            )


LOOK_EVERY_S = 60.0


class EngineChecks:
    """Looks at each program beside everything else, for it has to be started to tell.

    Args:
        registry: the engines.
        host: whose GPUs they are to use.

    Attributes:
        warnings: the engines that can't.
    """

    def __init__(self, registry: Registry, host: Host) -> None:
        self.warnings: tuple[HostWarning, ...] = ()
        self._registry = registry
        self._host = host
        self._fit: dict[str, tuple[str, int]] = {}

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look again and again: programs are replaced, drivers loaded late."""
        while True:
            before = self.warnings
            await self.look()
            if self.warnings != before:
                changed()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look at all programs but those that were found fit and are still the same."""
        found: list[HostWarning] = []
        if any(device.kind is DeviceKind.CUDA for device in self._host.devices):
            for name in self._registry.names:
                harness = self._registry.get(name).harness
                build = build_of(harness.program) if harness.program else None
                if build is None or self._fit.get(name) == build:
                    continue
                if warning := await _unfit(harness, build[0], self._host.cuda_version):
                    found.append(warning)
                else:
                    self._fit[name] = build
        self.warnings = tuple(found)


async def _unfit(harness: Harness, program: str, driver_cuda: str | None) -> HostWarning | None:
    built_for = await linked_cuda(program)
    if built_for and driver_cuda and built_for > int(driver_cuda.partition(".")[0]):
        return HostWarning(
            code="engine_cuda_mismatch",
            message=f"{harness.name}: {program} is built for CUDA {built_for}, the driver offers {driver_cuda}: "
            "install a matching build or a newer driver",
        )
    if DeviceKind.CUDA in harness.capabilities.kinds and (why := await harness.without_gpu()):
        return HostWarning(code="engine_without_gpu", message=f"{harness.name}: {why}")
    return None
