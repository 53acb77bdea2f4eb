"""A real SGLang under a neuron, by its preset.

CORTEX_TEST_SGLANG is the path of the python that it is installed for. Its wheel computes on NVIDIA's cards; on a
processor without AMX, SGLang 0.5.23 serves once the module `sgl_kernel`, which can't be imported without CUDA, is
replaced by one whose `assign_req_to_token_pool_cpu` is written in torch. All else that a dense model needs it has in
torch itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.preset_rig import PresetRig, failure_of, live_through
from engines.tiny_hf import write_tiny_hf

PROGRAM = os.environ.get("CORTEX_TEST_SGLANG")
ON_PROCESSOR = ("--device", "cpu", "--attention-backend", "torch_native")
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="no SGLang: set CORTEX_TEST_SGLANG"),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PresetRig]:
    """An SGLang on the processor."""
    rig = PresetRig(
        tmp_path,
        "sglang",
        Path(PROGRAM or ""),
        {"SGLANG_USE_CPU_ENGINE": "1"},
        (*ON_PROCESSOR, "--max-total-tokens", "8192"),
    )
    yield rig
    rig.kill_left()


async def test_sglang_is_started_asked_adopted_and_stopped(rig: PresetRig):
    """It tells its context, streams, serves on under the next neuron, and leaves no process."""
    weights = write_tiny_hf(rig.directory / "tiny")
    ready = await live_through(rig, weights, worker="sglang::scheduler", tokens=2000)
    assert ready.context == 4096


async def test_sglang_tells_what_its_scheduler_could_not_load(rig: PresetRig):
    """Its head kills itself when a child fails: the child's error is the instance's, and nobody else is blamed."""
    weights = write_tiny_hf(rig.directory / "tiny")
    (weights / "model.safetensors").unlink()
    error = await failure_of(rig, weights)
    assert "crashed (SIGKILL)" in error
    assert "Cannot find any model weights" in error
    assert "Traceback" not in error
