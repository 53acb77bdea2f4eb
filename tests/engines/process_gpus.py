"""GPUs whose memory follows the engine processes of this test process.

An engine's arguments say what it uses (see `fake_engine.py`), and CUDA_VISIBLE_DEVICES where, so that a crash, a stop
and a restart free and take memory as with a real driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
from engines.fake_nvml import MIB, FakeGpu


class ProcessGpu(FakeGpu):
    """A GPU used by this process's engines, and by others.

    Attributes:
        total_mb: its memory.
        other_mb: MiB used by other processes.
        attributes: the driver lists the processes of engines.
        containers: MiB of processes that are no descendants of this one, by pid.
    """

    def __init__(self, number: int, total_mb: int, *, name: str = "Card") -> None:
        super().__init__(number, Name=name)
        self.total_mb = total_mb
        self.other_mb = 0
        self.attributes = True
        self.containers: dict[int, int] = {}
        self.answers = _Answers(self.answers, self)

    def engines(self) -> Iterator[tuple[int, int]]:
        """Yield the pid and the MiB of each engine on this GPU."""
        yield from self.containers.items()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                visible = process.environ().get("CUDA_VISIBLE_DEVICES", "").split(",")
                if self.uuid in visible and process.status() != psutil.STATUS_ZOMBIE:
                    yield process.pid, self._used_mb(process.cmdline())

    def _used_mb(self, argv: list[str]) -> int:
        values = {name: argv[i + 1] for i, name in enumerate(argv[:-1]) if name.startswith("--gpu")}
        share = float(values.get("--gpu-share", 0)) * self.total_mb
        return round(share) + int(values.get("--gpu-mb", 0))


class _Answers(dict[str, object]):
    def __init__(self, answers: dict[str, object], gpu: ProcessGpu) -> None:
        super().__init__(answers)
        self._gpu = gpu

    def __getitem__(self, field: str) -> object:
        if field == "MemoryInfo":
            used = self._gpu.other_mb + sum(mb for _, mb in self._gpu.engines())
            used = min(used, self._gpu.total_mb)
            total = self._gpu.total_mb
            return SimpleNamespace(total=total * MIB, used=used * MIB, free=(total - used) * MIB)
        if field == "ComputeRunningProcesses" and self._gpu.attributes:
            return [
                SimpleNamespace(pid=pid, usedGpuMemory=mb * MIB)
                for pid, mb in self._gpu.engines()
                if mb
            ]
        return super().__getitem__(field)
