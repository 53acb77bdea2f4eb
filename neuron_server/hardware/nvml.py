"""NVIDIA GPUs through NVML. A missing driver, a lost card, a field that is not supported are states, never crashes.

Facts: NVML counts cards in PCI bus order whatever CUDA_VISIBLE_DEVICES says; `used` of the plain memory call
includes what the driver keeps for itself (616 MiB of an H200), that of its second version does not; a process's
memory is None where the platform can't tell (WSL, some containers); cards with unified memory (GB10) answer
NotSupported for memory, so the host's numbers stand in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil

from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, HostWarning
from cortex_common.schema.instances import InstanceId
from cortex_common.units import BYTES_PER_MIB
from neuron_server.hardware.sample import DeviceSample, Inventory
from neuron_server.hardware.xid import XidListener

T = TypeVar("T")

_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
_NOT_FOUND = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_FUNCTION_NOT_FOUND = 13
_VERSION_MISMATCH = 18
_ABSENT_FIELD = {_NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _FUNCTION_NOT_FOUND}
_TEMPERATURE_GPU = 0
_MIG_ON = 1

_INIT_WARNINGS = {
    _VERSION_MISMATCH: HostWarning(
        code="driver_library_mismatch",
        message="the NVIDIA driver was upgraded under a running kernel module: reboot the host to use its GPUs",
    ),
    _DRIVER_NOT_LOADED: HostWarning(
        code="driver_not_loaded",
        message="the NVIDIA kernel module is not loaded: load it (modprobe nvidia) or install the driver",
    ),
}


@dataclass(frozen=True, slots=True)
class _Card:
    handle: Any
    device: Device


class NvmlSource:
    """All NVIDIA GPUs of the host.

    Args:
        library: the pynvml module, or something of its shape. None on a host without the package.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._cards: tuple[_Card, ...] = ()
        self._ready = False
        self._xids = XidListener(library)

    def inventory(self) -> Inventory:
        """Enumerate; with no driver there are no devices, and a warning where that looks like a mistake."""
        if self._nvml is None:
            return Inventory()
        self.close()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as failed:
            code = getattr(failed, "value", None)
            warning = _INIT_WARNINGS.get(code) if code is not None else None
            if warning is None and code != _LIBRARY_NOT_FOUND:
                warning = HostWarning(code="nvml_failed", message=f"NVML does not start: {failed}")
            return Inventory(warnings=(warning,) if warning else ())
        self._ready = True
        warnings: list[HostWarning] = []
        self._cards = tuple(self._enumerate(warnings))
        return Inventory(
            devices=tuple(card.device for card in self._cards),
            driver_version=self._ask(self._nvml.nvmlSystemGetDriverVersion),
            cuda_version=_cuda_version(self._ask(self._nvml.nvmlSystemGetCudaDriverVersion_v2)),
            warnings=tuple(warnings),
        )

    def sample(self, trees: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Read all cards; one that fails is marked lost, the others go on."""
        return tuple(self._sample(card, trees) for card in self._cards)

    def close(self) -> None:
        """Shut NVML down; handles are never used across it."""
        if self._ready:
            self._xids.close()
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._ready = False
        self._cards = ()

    def _enumerate(self, warnings: list[HostWarning]) -> Iterator[_Card]:
        nvml = self._nvml
        for index in range(self._ask(nvml.nvmlDeviceGetCount) or 0):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
            except nvml.NVMLError as failed:
                message = f"GPU {index} does not answer: {failed}"
                warnings.append(HostWarning(code="gpu_lost", message=message))
                continue
            total, unified = self._total(handle)
            capability = self._ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
            device = Device(
                index=index,
                uuid=uuid,
                kind=DeviceKind.CUDA,
                name=_text(self._ask(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"),
                vram_total_mb=total // BYTES_PER_MIB,
                compute_capability=".".join(map(str, capability)) if capability else None,
                unified=unified,
            )
            warnings.extend(self._card_warnings(device, handle))
            self._xids.listen(uuid, handle)
            yield _Card(handle, device)

    def _card_warnings(self, device: Device, handle: Any) -> Iterator[HostWarning]:
        nvml = self._nvml
        who = f"GPU {device.index} ({device.name})"
        if self._ask(nvml.nvmlDeviceGetPersistenceMode, handle) == 0:
            yield HostWarning(
                code="persistence_mode_off",
                message=f"{who}: persistence mode is off, first use after idling is slow: nvidia-smi -pm 1",
            )
        mig = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        if mig and mig[0] == _MIG_ON:
            yield HostWarning(
                code="mig_enabled",
                message=f"{who}: MIG is on; cortex places models on whole cards only: nvidia-smi -mig 0",
            )
        uncorrected = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        if uncorrected:
            yield HostWarning(
                code="ecc_errors",
                message=f"{who}: {uncorrected} uncorrected ECC errors since the driver was loaded",
            )

    def _total(self, handle: Any) -> tuple[int, bool]:
        """Bytes of the card, and whether they are the host's."""
        memory = self._ask(self._memory_info, handle)
        host = int(psutil.virtual_memory().total)
        if memory is None or memory.total == 0:
            return host, True
        return int(memory.total), memory.total >= host and self._shares_memory(handle)

    def _shares_memory(self, handle: Any) -> bool:
        """Only a discrete card shows its memory on the bus; a card may well be larger than the host's RAM."""
        return self._ask(self._nvml.nvmlDeviceGetBAR1MemoryInfo, handle) is None

    def _sample(self, card: _Card, trees: Mapping[InstanceId, frozenset[int]]) -> DeviceSample:
        nvml, handle, uuid = self._nvml, card.handle, card.device.uuid
        xids = self._xids.news(uuid)
        try:
            used, free = self._memory(card)
            usage = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle, raising=True)
            power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
            return DeviceSample(
                uuid=uuid,
                used_mb=_mib(used),
                free_mb=_mib(free),
                utilization_pct=None if usage is None else int(usage.gpu),
                temp_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, _TEMPERATURE_GPU),
                power_w=None if power is None else power / 1000.0,
                by_instance=self._by_instance(handle, trees),
                pool_free_mb=_mib(free) if card.device.unified else None,
                xids=xids,
            )
        except Exception as failed:  # noqa: BLE001 - NVMLLibraryMismatchError is no NVMLError; one card must not hide the others
            lost = DeviceSample(uuid=uuid, used_mb=card.device.vram_total_mb, free_mb=0)
            return replace(lost, health=DeviceHealth.LOST, reason=str(failed), xids=xids)

    def _memory(self, card: _Card) -> tuple[int, int]:
        if card.device.unified:
            memory = psutil.virtual_memory()
            return memory.total - memory.available, memory.available
        memory = self._memory_info(card.handle)
        return int(memory.used), int(memory.free)

    def _memory_info(self, handle: Any) -> Any:
        """Like nvidia-smi without what the driver keeps for itself, where the driver can tell it apart (since 510)."""
        try:
            return self._nvml.nvmlDeviceGetMemoryInfo(handle, self._nvml.nvmlMemory_v2)
        except self._nvml.NVMLError as failed:
            if getattr(failed, "value", None) != _FUNCTION_NOT_FOUND:
                raise
            return self._nvml.nvmlDeviceGetMemoryInfo(handle)

    def _by_instance(
        self, handle: Any, trees: Mapping[InstanceId, frozenset[int]]
    ) -> dict[InstanceId, int]:
        used: dict[int, int | None] = {}
        for call in (
            self._nvml.nvmlDeviceGetComputeRunningProcesses,
            self._nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._ask(call, handle) or ():
                used[process.pid] = process.usedGpuMemory
        found: dict[InstanceId, int] = {}
        for instance, pids in trees.items():
            mine = [used[pid] for pid in pids if pid in used]
            known = [size for size in mine if size is not None]
            if len(known) == len(mine) and known:
                found[instance] = _mib(sum(known))
        return found

    def _ask(self, call: Callable[..., T], *args: Any, raising: bool = False) -> T | None:
        """A field, or None when the card does not have it.

        Args:
            call: the NVML function.
            args: its arguments.
            raising: let errors through that mean that the card itself is in trouble.
        """
        try:
            return call(*args)
        except self._nvml.NVMLError as failed:
            if raising and getattr(failed, "value", None) not in _ABSENT_FIELD:
                raise
            return None


def load_library() -> Any:
    """The pynvml module, or None where it is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - a host without GPUs need not have it
    except ImportError:
        return None
    return pynvml


def _mib(size: int) -> int:
    """The nearest MiB, as nvidia-smi prints them."""
    return (size + BYTES_PER_MIB // 2) // BYTES_PER_MIB


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cuda_version(number: int | None) -> str | None:
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
