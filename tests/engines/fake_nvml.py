"""A fake of the pynvml library, for GPU states that no single machine can show."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

MIB = 1024 * 1024
XID = 8
"""The type of XID events."""
TIMEOUT = 10


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeGpu:
    """One GPU's answers; an int in place of an answer is the error code that the call fails with.

    `events` are the driver's queued events: (type, data), or the error code that waiting for one fails with.
    """

    def __init__(self, number: int, **answers) -> None:
        self.uuid = answers.pop("uuid", f"GPU-{number}")
        self.slices: tuple[FakeGpu, ...] = answers.pop("slices", ())
        self.events: deque[tuple[int, int] | int] = deque()
        self.answers = {
            "Name": f"Card {number}",
            "MemoryInfo": SimpleNamespace(total=8000 * MIB, free=6000 * MIB, used=2000 * MIB),
            "BAR1MemoryInfo": SimpleNamespace(),
            "CudaComputeCapability": [9, 0],
            "UtilizationRates": SimpleNamespace(gpu=42, memory=7),
            "Temperature": 55,
            "PowerUsage": 123456,
            "PersistenceMode": 1,
            "MigMode": 3,
            "TotalEccErrors": 3,
            "P2PStatus": failing(3),
            "TopologyCommonAncestor": failing(3),
            "ComputeRunningProcesses": [],
            "GraphicsRunningProcesses": [],
            "RegisterEvents": None,
        } | answers


class EventSet:
    """The events of the GPUs that were registered with it."""

    def __init__(self) -> None:
        self.gpus: list[FakeGpu] = []


class FakeNvml:
    NVMLError = FakeNvmlError
    nvmlEventTypeXidCriticalError = XID  # noqa: N815 - the library's name
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlMemory_v2 = 0x02000028  # noqa: N815 - the library's name

    def __init__(self, *gpus: FakeGpu, init: int | None = None) -> None:
        self.gpus = gpus
        self.init = init
        self.inits = 0
        self.event_sets = 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        if self.init is not None:
            raise FakeNvmlError(self.init)
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - the library's name
        self.inits -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802 - the library's name
        return "580.126.09"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802 - the library's name
        return 13010

    def nvmlEventSetCreate(self) -> EventSet:  # noqa: N802 - the library's name
        self.event_sets += 1
        return EventSet()

    def nvmlDeviceRegisterEvents(self, gpu: FakeGpu, types: int, events: EventSet) -> None:  # noqa: N802 - the library's name
        assert types == XID
        code = gpu.answers["RegisterEvents"]
        if code is not None:
            raise FakeNvmlError(code)
        events.gpus.append(gpu)

    def nvmlEventSetWait_v2(self, events: EventSet, _timeout_ms: int) -> SimpleNamespace:  # noqa: N802 - the library's name
        (gpu,) = events.gpus
        event = gpu.events.popleft() if gpu.events else TIMEOUT
        if isinstance(event, int):
            raise FakeNvmlError(event)
        return SimpleNamespace(device=gpu, eventType=event[0], eventData=event[1])

    def nvmlEventSetFree(self, _events: EventSet) -> None:  # noqa: N802 - the library's name
        self.event_sets -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the library's name
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802 - the library's name
        return self.gpus[index]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:  # noqa: N802 - the library's name
        return len(gpu.slices) + 1

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, slot: int) -> FakeGpu:  # noqa: N802 - the library's name
        if slot >= len(gpu.slices):
            raise FakeNvmlError(6)
        return gpu.slices[slot]

    def nvmlDeviceGetP2PStatus(self, gpu: FakeGpu, other: FakeGpu, _capability: int) -> int:  # noqa: N802 - the library's name
        return self._pair("P2PStatus", gpu, other)

    def nvmlDeviceGetTopologyCommonAncestor(self, gpu: FakeGpu, other: FakeGpu) -> int:  # noqa: N802 - the library's name
        return self._pair("TopologyCommonAncestor", gpu, other)

    def _pair(self, field: str, gpu: FakeGpu, other: FakeGpu) -> int:
        """Return an answer about two GPUs, given as a mapping by the other's UUID."""
        answer = gpu.answers[field]
        if isinstance(answer, tuple):
            raise FakeNvmlError(answer[1])
        return answer[other.uuid]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:  # noqa: N802 - the library's name
        answer = gpu.answers.get("UUID", gpu.uuid)
        if isinstance(answer, int):
            raise FakeNvmlError(answer)
        return answer

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> object:  # noqa: N802 - the library's name
        answer = gpu.answers["MemoryInfo"]
        if version is not None:
            answer = gpu.answers.get("MemoryInfo_v2", answer)
        if isinstance(answer, int):
            raise FakeNvmlError(answer)
        return answer

    def __getattr__(self, name: str):
        field = name.removeprefix("nvmlDeviceGet")

        def query(gpu: FakeGpu, *_: object) -> object:
            answer = gpu.answers[field]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, int) and field in {"MigMode", "TotalEccErrors"}:
                raise FakeNvmlError(answer)
            if isinstance(answer, tuple) and answer[0] == "error":
                raise FakeNvmlError(answer[1])
            return answer

        return query


def failing(code: int) -> tuple[str, int]:
    """Return an answer that raises an NVML error."""
    return ("error", code)
