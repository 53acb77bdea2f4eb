"""Whether the programs of the engines can use this host's GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cortex_common.schema.hardware import DeviceKind, HostWarning
from neuron_server.hardware.host import Host
from neuron_server.harness.base import Harness
from neuron_server.harness.registry import Registry
from neuron_server.process.program import build_of, linked_cuda

LOOK_EVERY_S = 60.0


class Fitness:
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
