"""Checks for engine programs that can't use a host's GPUs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engines.attached_rig import script
from engines.fake_nvml import FakeGpu, FakeNvml

from cortex_common.clock import SystemClock
from cortex_common.config.neuron import HarnessEntry
from neuron_server.diagnostics import EngineChecks
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.harness.probe import engine_client
from neuron_server.harness.registry import HarnessRegistry

CUDA_BUILD = "Available devices:\n  CUDA0: NVIDIA L4 (22565 MiB, 22130 MiB free)"
CPU_BUILD = "Available devices:\n  (none)"


@contextlib.asynccontextmanager
async def engine_checks(entry: HarnessEntry, gpus: int = 1) -> AsyncIterator[EngineChecks]:
    """Create the checks of a host with one engine and a driver that supports CUDA 13.1."""
    host = Host((NvmlSource(FakeNvml(*map(FakeGpu, range(gpus)))),), SystemClock())
    await host.open()
    registry = HarnessRegistry([entry], engine_client())
    try:
        yield EngineChecks(registry, host)
    finally:
        await registry.close()
        await host.close()


def llama(path: Path, printed: str) -> HarnessEntry:
    """Create a llama-server that lists these devices, and logs its calls in the file `calls`."""
    program = script(
        path / "llama-server", f"echo \"$@\" >> {path}/calls\ncat <<'END'\n{printed}\nEND"
    )
    return HarnessEntry(name="llamacpp", binary=program)


async def codes(entry: HarnessEntry, gpus: int = 1) -> list[str]:
    """Return the codes of the warnings about an engine."""
    async with engine_checks(entry, gpus) as checks:
        await checks.check()
        return [warning.code for warning in checks.warnings]


async def test_a_program_for_a_newer_cuda_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The CUDA version that the program links is compared with the one that the driver supports."""
    entry = llama(tmp_path, CUDA_BUILD)
    script(tmp_path / "ldd", "echo '  libcudart.so.14 => /usr/lib/libcudart.so.14 (0x0)'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    async with engine_checks(entry) as checks:
        await checks.check()
        (warning,) = checks.warnings
    assert warning.code == "engine_cuda_mismatch"
    assert "built for CUDA 14 but the driver supports 13.1" in warning.message
    script(tmp_path / "ldd", "echo '  libcudart.so.13 => /usr/lib/libcudart.so.13 (0x0)'")
    assert await codes(entry) == []


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (CUDA_BUILD, []),
        ("Available devices:\n  Vulkan0: NVIDIA L4 (22565 MiB, 22130 MiB free)", []),
        (CPU_BUILD, ["engine_without_gpu"]),
        ("Available devices:", ["engine_without_gpu"]),
        ("Available devices:\n  BLAS: OpenBLAS (0 MiB, 0 MiB free)", ["engine_without_gpu"]),
        ("error: invalid argument: --list-devices", []),
    ],
)
async def test_a_llama_server_that_lists_no_gpu_is_a_warning(
    tmp_path: Path, printed: str, expected: list[str]
):
    """It reports that itself; a build without the option is assumed to use GPUs."""
    assert await codes(llama(tmp_path, printed)) == expected


async def test_engines_of_a_host_without_gpus_are_not_checked(tmp_path: Path):
    """On a host without GPUs a build without CUDA is fine, and the program is not even started."""
    assert await codes(llama(tmp_path, CPU_BUILD), gpus=0) == []
    assert not (tmp_path / "calls").exists()


async def test_a_program_is_checked_with_the_environment_of_its_harness(tmp_path: Path):
    """CUDA libraries can be in a directory that is only on LD_LIBRARY_PATH."""
    program = script(tmp_path / "llama-server", 'echo "Available devices:"\necho "  $CARD: a card"')
    entry = HarnessEntry(name="llamacpp", binary=program)
    assert await codes(entry) == ["engine_without_gpu"]
    assert await codes(entry.model_copy(update={"env": {"CARD": "CUDA0"}})) == []


async def test_a_program_is_checked_until_it_passes(tmp_path: Path):
    """The warning disappears once a build with CUDA is installed, which is then not started again."""
    async with engine_checks(llama(tmp_path, CPU_BUILD)) as checks:
        await checks.check()
        assert "-DGGML_CUDA=ON" in checks.warnings[0].message
        llama(tmp_path, CUDA_BUILD)
        await checks.check()
        await checks.check()
        assert checks.warnings == ()
    assert (tmp_path / "calls").read_text().splitlines() == ["--list-devices"] * 2


async def test_a_mistralrs_that_links_no_cuda_is_a_warning(tmp_path: Path):
    """The linked libraries are checked; a wrapper script can't be checked and is assumed to use GPUs."""
    program = tmp_path / "mistralrs"
    shutil.copy(shutil.which("true") or "", program)
    assert await codes(HarnessEntry(name="mistralrs", binary=program)) == ["engine_without_gpu"]
    program.unlink()
    script(program, "exec true")
    assert await codes(HarnessEntry(name="mistralrs", binary=program)) == []
