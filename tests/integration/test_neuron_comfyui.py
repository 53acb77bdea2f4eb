"""The ComfyUI preset, with a fake server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.neuron_rig import NeuronRig, load, running, until

from cortex_common.schema.instances import InstanceState, LoadSpec, UnloadRequest

FAKE_COMFYUI = Path(__file__).parents[1] / "engines" / "fake_comfyui.py"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """Provide a neuron with a ComfyUI harness."""
    command = [sys.executable, str(FAKE_COMFYUI), "--listen", "{host}", "--port", "{port}"]
    comfyui = (
        '[[harnesses]]\nname = "comfyui"\nkind = "command"\npreset = "comfyui"\n'
        f"command = {json.dumps(command)}\n"
    )
    rig = NeuronRig(tmp_path / "neuron", harnesses=comfyui)
    rig.config.write_text(
        rig.config.read_text() + f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    )
    yield from running(rig)


async def test_an_unload_waits_for_comfyuis_queue(rig: NeuronRig):
    """Its jobs do not pass through the gateway, so the engine's queue shows whether it is busy."""
    async with rig.client() as client:
        spec = LoadSpec(model_id="pictures", harness="comfyui", vram_mb=100)
        ready = await load(client, spec)
        async with httpx.AsyncClient(base_url=ready.url or "") as http:
            await http.post("/prompt", json={"prompt": {}})
            await until(client, lambda models: models[0].in_flight == 1)
            unloading = asyncio.create_task(
                client.unload(UnloadRequest(model_id="pictures", drain_seconds=60))
            )
            await until(client, lambda models: models[0].status is InstanceState.DRAINING)
            await http.get("/fake/finish")
        await unloading
        assert await client.models() == ()
