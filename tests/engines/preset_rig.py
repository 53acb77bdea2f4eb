"""A real engine under a neuron by its preset: what the tests of vLLM and SGLang have in common.

They compute on the processor, and the card is one that a fake NVML shows.
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

PATIENCE_S = 500.0
"""What a load may take on two slow cores that others use."""
FIRST_PORT = 42000 + os.getpid() * 31 % 9000


@dataclass(frozen=True)
class PresetRig:
    """A directory of neurons that offer one harness of kind `command`.

    Attributes:
        preset: its name, and the harness's.
        program: `binary` of the harness.
        env: the harness's.
        args: of each load.
    """

    directory: Path
    preset: str
    program: Path
    env: dict[str, str]
    args: tuple[str, ...]

    @contextlib.asynccontextmanager
    async def neuron(self) -> AsyncIterator[NeuronClient]:
        """A neuron that leaves its engines running when it ends."""
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
        """A load of `org/tiny`."""
        said = {"model_id": "org/tiny", "harness": self.preset, "source": str(source)}
        return LoadSpec.model_validate(said | {"vram_mb": 1500, "args": self.args} | more)

    def kill_left(self) -> None:
        """Nothing of it is left at the end of a test that fails, either."""
        table = read_table()
        for head in pids_with_marker(table, owner_id(self.directory / "state")):
            for pid in table.tree(head):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def live_through(rig: PresetRig, weights: Path, worker: str, tokens: int) -> ModelInfo:
    """Load, stream, go on with a begun answer, adopt under the next neuron, drain a stream, and leave no process.

    Args:
        rig: its directory.
        weights: what to load.
        worker: what one of the engine's processes is named.
        tokens: of the stream that an unload waits for.

    Returns:
        The instance as it became ready.
    """
    async with rig.neuron() as client:
        ready = await load(client, rig.spec(weights, context=4096, parallel=2), PATIENCE_S)
        engine = _processes_of(ready)
        assert any(worker in " ".join((p.name(), *p.cmdline())) for p in engine)
        data = await lines_of(ready, 20, asyncio.Event())
        assert data[-1] == "[DONE]"
        await _go_on(client.base_url)
    async with rig.neuron() as client:
        (adopted,) = await until(client, lambda ms: bool(ms) and ms[0].status == "ready")
        assert adopted.url == ready.url
        begun = asyncio.Event()
        streaming = asyncio.create_task(lines_of(adopted, tokens, begun))
        await asyncio.wait_for(begun.wait(), 30)
        await client.unload(UnloadRequest(model_id="org/tiny", drain_seconds=120))
        assert (await streaming)[-1] == "[DONE]"
    assert not [p for p in engine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return ready


async def failure_of(rig: PresetRig, source: Path) -> str:
    """What a load of that source says once it failed."""
    async with rig.neuron() as client:
        await client.load(rig.spec(source))
        (failed,) = await until(
            client, lambda ms: bool(ms) and ms[0].status is InstanceState.FAILED, PATIENCE_S
        )
        return failed.error or ""


async def _go_on(neuron: str) -> None:
    """Through a gateway, an answer that the client of Messages began is gone on with, not repeated."""
    said = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "begun so"}]
    body = {"model": "org/tiny", "max_tokens": 4, "messages": said}
    async with (
        running_gateway(neurons={"here": neuron}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        async with asyncio.timeout(20):
            while not gateway.gateway.fleet.ready("org/tiny"):
                await asyncio.sleep(0.01)
        answer = await http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["output_tokens"] == 4
    assert "begun" not in answer.text


def _processes_of(model: ModelInfo) -> list[psutil.Process]:
    """The engine that listens there, with all that it started."""
    port = int((model.url or "").rpartition(":")[2])
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.pid}
    head = psutil.Process(pid)
    return [head, *head.children(recursive=True)]
