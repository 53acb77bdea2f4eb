"""NVIDIA GPUs through NVML. A missing driver, a lost GPU and an unsupported field are states, never errors.

NVML enumerates GPUs in PCI bus order, regardless of CUDA_VISIBLE_DEVICES. `used` of the first version of the memory
call includes memory reserved by the driver (616 MiB on an H200), that of the second version does not. A process's
memory is None where the platform can't attribute it (WSL, some containers). GPUs with unified memory (GB10) return
NotSupported for memory, so the host's numbers are used instead. The MIG devices of a GPU are devices of their own, and
a process can use one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, HostWarning
from cortex_common.schema.instances import InstanceId
from cortex_common.units import BYTES_PER_MIB
from neuron_server.hardware.host_memory import read_host_memory
from neuron_server.hardware.sample import DeviceSample, Inventory
from neuron_server.hardware.topology import mig_handles, read_links
from neuron_server.hardware.xid import XidListener

T = TypeVar("T")

_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
_NOT_FOUND = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_FUNCTION_NOT_FOUND = 13
_VERSION_MISMATCH = 18
_GPU_IS_LOST = 15
_RESET_REQUIRED = 16
_GONE = {_GPU_IS_LOST, _RESET_REQUIRED}
_GPU_LOST_WARNING = "gpu_lost"
_ABSENT_FIELD = {_NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _FUNCTION_NOT_FOUND}
_TEMPERATURE_GPU = 0
_MIG_ON = 1

_INIT_WARNINGS = {
    _VERSION_MISMATCH: HostWarning(
        code="driver_library_mismatch",
        message="the NVIDIA driver was upgraded while its kernel module was loaded: reboot the host to use its GPUs",
    ),
    _DRIVER_NOT_LOADED: HostWarning(
        code="driver_not_loaded",
        message="the NVIDIA kernel module is not loaded: load it (modprobe nvidia) or install the driver",
    ),
}


@dataclass(frozen=True, slots=True)
class _Gpu:
    handle: Any
    device: Device


class NvmlSource:
    """A source with all NVIDIA GPUs of the host.

    Args:
        library: the pynvml module, or a compatible object; None on a host without the package.
    """

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._gpus: tuple[_Gpu, ...] = ()
        self._initialized = False
        self._xids = XidListener(library)

    def inventory(self) -> Inventory:
        """Enumerate the GPUs; without a driver there are none, with a warning if that looks like a misconfiguration."""
        if self._nvml is None:
            return Inventory()
        self.close()
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            code = getattr(error, "value", None)
            warning = _INIT_WARNINGS.get(code) if code is not None else None
            if warning is None and code != _LIBRARY_NOT_FOUND:
                warning = HostWarning(
                    code="nvml_failed", message=f"NVML failed to initialize: {error}"
                )
            return Inventory(warnings=(warning,) if warning else (), complete=False)
        self._initialized = True
        warnings: list[HostWarning] = []
        self._gpus = tuple(self._enumerate(warnings))
        return Inventory(
            devices=tuple(gpu.device for gpu in self._gpus),
            driver_version=self._query(self._nvml.nvmlSystemGetDriverVersion),
            cuda_version=_cuda_version(self._query(self._nvml.nvmlSystemGetCudaDriverVersion_v2)),
            warnings=tuple(warnings),
            complete=all(warning.code != _GPU_LOST_WARNING for warning in warnings),
        )

    def sample(self, pids: Mapping[InstanceId, frozenset[int]]) -> tuple[DeviceSample, ...]:
        """Read all GPUs; one that fails is reported as lost without affecting the others."""
        return tuple(self._sample(gpu, pids) for gpu in self._gpus)

    def close(self) -> None:
        """Shut NVML down; handles are never used afterwards."""
        if self._initialized:
            self._xids.close()
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._initialized = False
        self._gpus = ()

    def _enumerate(self, warnings: list[HostWarning]) -> Iterator[_Gpu]:
        nvml = self._nvml
        handles: dict[int, Any] = {}
        for ordinal in range(self._query(nvml.nvmlDeviceGetCount) or 0):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(ordinal)
                nvml.nvmlDeviceGetUUID(handle)
            except nvml.NVMLError as error:
                message = f"GPU {ordinal} does not respond: {error}"
                warnings.append(HostWarning(code=_GPU_LOST_WARNING, message=message))
            else:
                handles[ordinal] = handle
        by_uuid = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles.values()}
        links = read_links(nvml, by_uuid)
        for ordinal, handle in handles.items():
            warnings.extend(self._gpu_warnings(ordinal, handle))
            self._xids.listen(_text(nvml.nvmlDeviceGetUUID(handle)), handle)
            sliced = self._is_mig(handle)
            for part in mig_handles(nvml, handle) if sliced else (handle,):
                device = self._device(ordinal, handle, part, warnings)
                if device is not None:
                    known = {} if sliced else links.get(device.uuid, {})
                    yield _Gpu(part, device.model_copy(update={"links": known}))

    def _device(
        self, ordinal: int, card: Any, handle: Any, warnings: list[HostWarning]
    ) -> Device | None:
        """Return a GPU, or a MIG device of the card; None, with a warning, if its memory can't be read."""
        nvml = self._nvml
        name = _text(self._query(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU")
        memory = self._total(handle)
        if memory is None:
            message = (
                f"GPU {ordinal} ({name}): its memory can't be read, so it is not offered: "
                "run nvidia-smi -q, and check the permissions of the neuron"
            )
            warnings.append(HostWarning(code="gpu_memory_unreadable", message=message))
            return None
        total, unified = memory
        capability = self._query(nvml.nvmlDeviceGetCudaComputeCapability, card)
        return Device(
            index=ordinal,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            kind=DeviceKind.CUDA,
            name=name,
            vram_total_mb=total // BYTES_PER_MIB,
            compute_capability=".".join(map(str, capability)) if capability else None,
            unified=unified,
            ordinal=ordinal,
        )

    def _is_mig(self, handle: Any) -> bool:
        mode = self._query(self._nvml.nvmlDeviceGetMigMode, handle)
        return mode is not None and mode[0] == _MIG_ON

    def _gpu_warnings(self, ordinal: int, handle: Any) -> Iterator[HostWarning]:
        nvml = self._nvml
        name = _text(self._query(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU")
        label = f"GPU {ordinal} ({name})"
        if self._query(nvml.nvmlDeviceGetPersistenceMode, handle) == 0:
            yield HostWarning(
                code="persistence_mode_off",
                message=f"{label}: persistence mode is off, so first use after idling is slow: run nvidia-smi -pm 1",
            )
        if self._is_mig(handle) and not mig_handles(nvml, handle):
            yield HostWarning(
                code="mig_enabled",
                message=f"{label}: MIG is enabled without any MIG device: create some with nvidia-smi mig -cgi, "
                "or run nvidia-smi -mig 0",
            )
        uncorrected = self._query(
            nvml.nvmlDeviceGetTotalEccErrors,
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        )
        if uncorrected:
            yield HostWarning(
                code="ecc_errors",
                message=f"{label}: {uncorrected} uncorrected ECC errors since the driver was loaded",
            )

    def _total(self, handle: Any) -> tuple[int, bool] | None:
        """Return the GPU's memory in bytes, and whether it is the host's memory; None if it can't be read.

        GPUs that share the host's memory report none, or that of the host. The size alone proves nothing: a GPU can
        have more memory than the host.
        """
        host = read_host_memory().total
        try:
            total = int(self._memory_info(handle).total)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) != _NOT_SUPPORTED:
                return None
            total = 0
        if total == 0:
            return (host, True) if self._shares_memory(handle) else None
        shared = total >= host and self._shares_memory(handle)
        return min(total, host) if shared else total, shared

    def _shares_memory(self, handle: Any) -> bool:
        """Return whether a GPU lacks a BAR1, which only GPUs with memory of their own have."""
        try:
            self._nvml.nvmlDeviceGetBAR1MemoryInfo(handle)
        except self._nvml.NVMLError as error:
            return getattr(error, "value", None) == _NOT_SUPPORTED
        return False

    def _sample(self, gpu: _Gpu, pids: Mapping[InstanceId, frozenset[int]]) -> DeviceSample:
        nvml, handle, uuid = self._nvml, gpu.handle, gpu.device.uuid
        xids = self._xids.poll(uuid)
        try:
            used, free = self._memory(gpu)
            usage = self._query(nvml.nvmlDeviceGetUtilizationRates, handle, raise_failures=True)
            power = self._query(nvml.nvmlDeviceGetPowerUsage, handle)
            processes = self._processes(handle)
            return DeviceSample(
                uuid=uuid,
                used_mb=_mib(used),
                free_mb=_mib(free),
                utilization_pct=None if usage is None else int(usage.gpu),
                temp_c=self._query(nvml.nvmlDeviceGetTemperature, handle, _TEMPERATURE_GPU),
                power_w=None if power is None else power / 1000.0,
                by_instance=_by_instance(processes, pids),
                attributes_memory=_attributes_memory(processes, pids),
                pool_free_mb=_mib(free) if gpu.device.unified else None,
                xids=xids,
            )
        except Exception as error:  # noqa: BLE001 - NVMLLibraryMismatchError is not an NVMLError; one GPU must not hide the others
            lost = DeviceSample(uuid=uuid, used_mb=gpu.device.vram_total_mb, free_mb=0)
            gone = getattr(error, "value", None) in _GONE
            return replace(lost, health=DeviceHealth.LOST, reason=str(error), xids=xids, gone=gone)

    def _memory(self, gpu: _Gpu) -> tuple[int, int]:
        if gpu.device.unified:
            memory = read_host_memory()
            return memory.total - memory.available, memory.available
        memory = self._memory_info(gpu.handle)
        return int(memory.used), int(memory.free)

    def _memory_info(self, handle: Any) -> Any:
        """Return memory without what the driver reserves, as nvidia-smi does, if the driver (>= 510) reports that."""
        try:
            return self._nvml.nvmlDeviceGetMemoryInfo(handle, self._nvml.nvmlMemory_v2)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) != _FUNCTION_NOT_FOUND:
                raise
            return self._nvml.nvmlDeviceGetMemoryInfo(handle)

    def _processes(self, handle: Any) -> dict[int, int | None]:
        """Return the bytes of each process on a GPU, by pid; None or 0 if the driver can't attribute them.

        In a container, some drivers translate the pid but not the memory, which is then 0.
        """
        used: dict[int, int | None] = {}
        for call in (
            self._nvml.nvmlDeviceGetComputeRunningProcesses,
            self._nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._query(call, handle) or ():
                used[process.pid] = process.usedGpuMemory
        return used

    def _query(self, call: Callable[..., T], *args: Any, raise_failures: bool = False) -> T | None:
        """Call an NVML function; return None if the GPU does not support the field.

        Args:
            call: the NVML function.
            args: its arguments.
            raise_failures: raise errors that indicate a failing GPU.
        """
        try:
            return call(*args)
        except self._nvml.NVMLError as error:
            if raise_failures and getattr(error, "value", None) not in _ABSENT_FIELD:
                raise
            return None


def _by_instance(
    processes: Mapping[int, int | None], pids: Mapping[InstanceId, frozenset[int]]
) -> dict[InstanceId, int]:
    """Return the MiB of each instance whose processes on the GPU all have a size."""
    by_instance: dict[InstanceId, int] = {}
    for instance, of in pids.items():
        reported = [processes[pid] for pid in of if pid in processes]
        sizes = [size for size in reported if size]
        if sizes and len(sizes) == len(reported):
            by_instance[instance] = _mib(sum(sizes))
    return by_instance


def _attributes_memory(
    processes: Mapping[int, int | None], pids: Mapping[InstanceId, frozenset[int]]
) -> bool:
    """Return whether nothing shows that the driver can't attribute memory to processes of this host.

    In a container, the driver lists pids of the host, which do not exist there, or sizes of 0.
    """
    ours = frozenset[int]().union(*pids.values())
    return all(
        size if pid in ours else Path(f"/proc/{pid}").exists() for pid, size in processes.items()
    )


def load_library() -> Any:
    """Return the pynvml module; None if it is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - optional on a host without GPUs
    except ImportError:
        return None
    return pynvml


def _mib(size: int) -> int:
    """Return a size rounded to MiB, as nvidia-smi prints it."""
    return (size + BYTES_PER_MIB // 2) // BYTES_PER_MIB


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cuda_version(number: int | None) -> str | None:
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"
