"""Which engines' programs can't use a host's GPUs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engines.attached_rig import script
from engines.fake_nvml import Card, FakeNvml

from cortex_common.clock import SystemClock
from cortex_common.config.neuron import HarnessEntry
from neuron_server.diagnostics import EngineChecks
from neuron_server.hardware.host import Host
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.harness.probe import engine_client
from neuron_server.harness.registry import Registry

CUDA_BUILD = "Available devices:\n  CUDA0: NVIDIA L4 (22565 MiB, 22130 MiB free)"
CPU_BUILD = "Available devices:\n  (none)"


@contextlib.asynccontextmanager
async def engine_checks(entry: HarnessEntry, cards: int = 1) -> AsyncIterator[EngineChecks]:
    """Of a host with one engine, whose driver offers CUDA 13.1."""
    host = Host((NvmlSource(FakeNvml(*map(Card, range(cards)))),), SystemClock())
    await host.open()
    registry = Registry([entry], engine_client())
    try:
        yield EngineChecks(registry, host)
    finally:
        await registry.close()
        await host.close()


def llama(path: Path, printed: str) -> HarnessEntry:
    """A llama-server that lists these devices, and notes in `asked` that it was asked."""
    program = script(
        path / "llama-server", f"echo \"$@\" >> {path}/asked\ncat <<'END'\n{printed}\nEND"
    )
    return HarnessEntry(name="llamacpp", binary=program)


async def codes(entry: HarnessEntry, cards: int = 1) -> list[str]:
    """The warnings about an engine."""
    async with engine_checks(entry, cards) as found:
        await found.check()
        return [warning.code for warning in found.warnings]


async def test_a_program_for_a_newer_cuda_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the program links is compared with what the driver offers."""
    entry = llama(tmp_path, CUDA_BUILD)
    script(tmp_path / "ldd", "echo '  libcudart.so.14 => /usr/lib/libcudart.so.14 (0x0)'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    async with engine_checks(entry) as found:
        await found.check()
        (warning,) = found.warnings
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
    """It says so itself, and one that does not know the question is given the benefit of the doubt."""
    assert await codes(llama(tmp_path, printed)) == expected


async def test_a_host_without_gpus_wants_none_of_its_engines(tmp_path: Path):
    """There the processor is what a build without CUDA is for, and the program is not even started."""
    assert await codes(llama(tmp_path, CPU_BUILD), cards=0) == []
    assert not (tmp_path / "asked").exists()


async def test_the_variables_of_the_harness_are_set_when_its_program_is_asked(tmp_path: Path):
    """CUDA's libraries may be where only LD_LIBRARY_PATH leads."""
    program = script(tmp_path / "llama-server", 'echo "Available devices:"\necho "  $CARD: a card"')
    entry = HarnessEntry(name="llamacpp", binary=program)
    assert await codes(entry) == ["engine_without_gpu"]
    assert await codes(entry.model_copy(update={"env": {"CARD": "CUDA0"}})) == []


async def test_a_program_is_asked_until_it_is_fit_and_then_not_again(tmp_path: Path):
    """The warning goes once a build with CUDA is there; that one is not started every minute."""
    async with engine_checks(llama(tmp_path, CPU_BUILD)) as found:
        await found.check()
        assert "-DGGML_CUDA=ON" in found.warnings[0].message
        llama(tmp_path, CUDA_BUILD)
        await found.check()
        await found.check()
        assert found.warnings == ()
    assert (tmp_path / "asked").read_text().splitlines() == ["--list-devices"] * 2


async def test_a_mistralrs_that_links_no_cuda_is_a_warning(tmp_path: Path):
    """Its libraries tell; a script around it does not, and is believed."""
    program = tmp_path / "mistralrs"
    shutil.copy(shutil.which("true") or "", program)
    assert await codes(HarnessEntry(name="mistralrs", binary=program)) == ["engine_without_gpu"]
    program.unlink()
    script(program, "exec true")
    assert await codes(HarnessEntry(name="mistralrs", binary=program)) == []
