"""Common parts of the tests with a real vLLM and SGLang.

The engines run on the CPU, with a GPU of a fake NVML.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from engines.fake_nvml import FakeGpu, FakeNvml
from engines.neuron_rig import lines_of, load, until
from engines.served_neuron import served
from rigs.inprocess_gateway import running_gateway

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from cortex_common.schema.instances import InstanceState, LoadSpec, ModelInfo, UnloadRequest
from neuron_server.hardware.nvml import NvmlSource
from neuron_server.process.process_table import pids_with_marker, read_table
from neuron_server.state_store import owner_id

LOAD_TIMEOUT_S = 500.0
"""Enough for a load on two slow, busy cores."""
FIRST_PORT = 42000 + os.getpid() * 31 % 9000


@dataclass(frozen=True)
class PresetRig:
    """A directory of neurons with one harness of kind `command`.

    Attributes:
        directory: holds the neurons' state.
        preset: name of the preset and of the harness.
        program: `binary` of the harness.
        env: `env` of the harness.
        args: `args` of each load.
    """

    directory: Path
    preset: str
    program: Path
    env: dict[str, str]
    args: tuple[str, ...]

    @contextlib.asynccontextmanager
    async def neuron(self) -> AsyncIterator[NeuronClient]:
        """Run a neuron that leaves its engines running when it stops."""
        harness = HarnessEntry.model_validate(
            {
                "name": self.preset,
                "kind": "command",
                "preset": self.preset,
                "binary": self.program,
                "env": self.env,
                "port_range": (FIRST_PORT, FIRST_PORT + 99),
                "stop_timeout_s": 30,
            }
        )
        section = NeuronSection(state_dir=self.directory / "state", on_stop="keep")
        config = NeuronConfig(neuron=section, harnesses=(harness,))
        async with (
            served(config, (NvmlSource(FakeNvml(FakeGpu(0))),)) as node,
            NeuronClient(node.url, who="preset test") as client,
        ):
            yield client

    def spec(self, source: Path, **more: object) -> LoadSpec:
        """Return a spec for `org/tiny`."""
        fields = {"model_id": "org/tiny", "harness": self.preset, "source": str(source)}
        return LoadSpec.model_validate(fields | {"vram_mb": 1500, "args": self.args} | more)

    def kill_remaining(self) -> None:
        """Kill the engine's remaining processes after a failed test."""
        table = read_table()
        for leader in pids_with_marker(table, owner_id(self.directory / "state")):
            for pid in table.tree(leader):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def run_lifecycle(rig: PresetRig, weights: Path, worker: str, tokens: int) -> ModelInfo:
    """Load, stream, continue an answer, adopt with the next neuron, drain a stream, and check for remaining processes.

    Args:
        rig: the engine's rig.
        weights: the model to load.
        worker: part of the name or command line of one of the engine's processes.
        tokens: length of the stream that an unload waits for.

    Returns:
        The instance when it became ready.
    """
    async with rig.neuron() as client:
        ready = await load(client, rig.spec(weights, context=4096, parallel=2), LOAD_TIMEOUT_S)
        engine = _processes_of(ready)
        assert any(worker in " ".join((p.name(), *p.cmdline())) for p in engine)
        data = await lines_of(ready, 20, asyncio.Event())
        assert data[-1] == "[DONE]"
        await _continue_answer(client.base_url)
    async with rig.neuron() as client:
        (adopted,) = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
        assert adopted.url == ready.url
        first = asyncio.Event()
        streaming = asyncio.create_task(lines_of(adopted, tokens, first))
        await asyncio.wait_for(first.wait(), 60)
        await client.unload(UnloadRequest(model_id="org/tiny", drain_seconds=120))
        assert (await streaming)[-1] == "[DONE]"
    assert not [p for p in engine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return ready


async def failed_load(rig: PresetRig, source: Path) -> str:
    """Return the error of a load that fails."""
    async with rig.neuron() as client:
        await client.load(rig.spec(source))
        (failed,) = await until(
            client, lambda ms: bool(ms) and ms[0].status is InstanceState.FAILED, LOAD_TIMEOUT_S
        )
        return failed.error or ""


async def _continue_answer(neuron: str) -> None:
    """Check that a partial answer in a Messages request is continued, not repeated, through a gateway."""
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "partial answer"},
    ]
    body = {"model": "org/tiny", "max_tokens": 4, "messages": messages}
    async with (
        running_gateway(neurons={"here": neuron}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        async with asyncio.timeout(60):
            while not gateway.gateway.fleet.ready("org/tiny"):
                await asyncio.sleep(0.01)
        answer = await http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["output_tokens"] == 4
    assert "partial answer" not in answer.text


def _processes_of(model: ModelInfo) -> list[psutil.Process]:
    """Return the processes of an instance's engine."""
    port = int((model.url or "").rpartition(":")[2])
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.pid}
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]
