"""The SGLang preset, with a real SGLang.

CORTEX_TEST_SGLANG is the path of the Python interpreter that it is installed for. Its wheel requires NVIDIA GPUs. On a
CPU without AMX, SGLang 0.5.23 works if the module `sgl_kernel`, which can't be imported without CUDA, is replaced by
one that implements `assign_req_to_token_pool_cpu` with torch. All other operations of a dense model are implemented in
torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.preset_rig import PresetRig, failed_load, run_lifecycle
from engines.tiny_hf import write_tiny_hf

PROGRAM = os.environ.get("CORTEX_TEST_SGLANG")
CPU_ARGS = ("--device", "cpu", "--attention-backend", "torch_native")
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="no SGLang: set CORTEX_TEST_SGLANG"),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PresetRig]:
    """SGLang on the CPU."""
    rig = PresetRig(
        tmp_path,
        "sglang",
        Path(PROGRAM or ""),
        {"SGLANG_USE_CPU_ENGINE": "1"},
        (*CPU_ARGS, "--max-total-tokens", "8192"),
    )
    yield rig
    rig.kill_remaining()


@pytest.mark.compatibility("SGLang", "chat")
async def test_sglang_is_started_queried_adopted_and_stopped(rig: PresetRig):
    """It reports its context, streams, is adopted by the next neuron, and leaves no process behind."""
    weights = write_tiny_hf(rig.directory / "tiny")
    ready = await run_lifecycle(rig, weights, worker="sglang::scheduler", tokens=2000)
    assert ready.context == 4096


async def test_sglangs_scheduler_error_is_reported(rig: PresetRig):
    """The leader kills itself when a child fails; the child's error is reported, not an external kill."""
    weights = write_tiny_hf(rig.directory / "tiny")
    (weights / "model.safetensors").unlink()
    error = await failed_load(rig, weights)
    assert "crashed (SIGKILL)" in error
    assert "Cannot find any model weights" in error
    assert "Traceback" not in error
