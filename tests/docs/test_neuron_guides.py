"""The pages about engines match the code."""

from __future__ import annotations

import asyncio
import re
import tomllib
from pathlib import Path

from cortex_common.clock import SystemClock
from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.instances import InstanceState, LoadSpec, UnloadRequest
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.host import Host
from neuron_server.harness.base import ProcessHarness
from neuron_server.harness.keys import EngineKeys
from neuron_server.harness.probe import engine_client
from neuron_server.harness.registry import KINDS, Builder, HarnessRegistry
from neuron_server.runtime import Runtime
from neuron_server.state_store import StateDir

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


async def ready(runtime: Runtime) -> None:
    """Wait until the only instance is ready; fail if it fails."""
    async with asyncio.timeout(20):
        async for _ in runtime.changes.subscribe(1.0):
            (instance,) = runtime.instances.snapshots
            assert instance.state is not InstanceState.FAILED, instance.error
            if instance.state is InstanceState.READY:
                return


async def test_the_harness_of_the_guide_works(tmp_path: Path):
    """The module, table entry and configuration of the guide load and unload an engine."""
    module, entry = blocks("guides/add-a-harness.md", "python")
    names: dict[str, Builder] = {}
    exec(compile(module, "toy.py", "exec"), names)
    kinds = dict(KINDS) | eval(f"{{{entry.strip()}}}", names)
    (settings,) = blocks("guides/add-a-harness.md", "toml")
    config = NeuronConfig.model_validate(
        tomllib.loads(settings) | {"neuron": {"state_dir": str(tmp_path / "state")}}
    )
    registry = HarnessRegistry(config.harnesses, engine_client(), kinds)
    assert isinstance(registry.get("toy").harness, ProcessHarness)
    clock = SystemClock()
    host = Host((CpuSource(config.cpu.memory_mb),), clock)
    state = StateDir(config.neuron.state_dir)
    runtime = Runtime(
        config,
        host,
        registry,
        state,
        clock,
        "127.0.0.1",
        token="token",
        keys=EngineKeys(tmp_path / "keys"),
    )
    await runtime.open()
    try:
        await runtime.load(LoadSpec(model_id="files", harness="toy"))
        await ready(runtime)
        await runtime.unload(UnloadRequest(model_id="files"))
        assert runtime.instances.snapshots == []
    finally:
        await runtime.close()


def test_every_kind_of_harness_has_its_row():
    """The table of engines has exactly the kinds that exist."""
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference/engines.md").read_text(), re.MULTILINE)
    assert rows == list(KINDS)
