"""ComfyUI by its preset, against a stand-in for its API."""

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

STAND_IN = Path(__file__).parents[1] / "engines" / "fake_comfyui.py"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[NeuronRig]:
    """A neuron with ComfyUI."""
    command = [sys.executable, str(STAND_IN), "--listen", "{host}", "--port", "{port}"]
    comfyui = (
        '[[harnesses]]\nname = "comfyui"\nkind = "command"\npreset = "comfyui"\n'
        f"command = {json.dumps(command)}\n"
    )
    rig = NeuronRig(tmp_path / "neuron", harnesses=comfyui)
    rig.config.write_text(
        rig.config.read_text() + f"port_range = [{rig.ports[0]}, {rig.ports[1]}]\n"
    )
    yield from running(rig)


async def test_an_unload_waits_for_the_pictures_in_comfyuis_queue(rig: NeuronRig):
    """They never pass the gateway, so its own queue tells whether it is in use."""
    async with rig.client() as client:
        spec = LoadSpec(model_id="pictures", harness="comfyui", vram_mb=100)
        ready = await load(client, spec)
        async with httpx.AsyncClient(base_url=ready.url or "") as http:
            await http.post("/prompt", json={"prompt": {}})
            await until(client, lambda models: models[0].in_flight == 1)
            unloading = asyncio.create_task(
                client.unload(UnloadRequest(model_id="pictures", drain_seconds=30))
            )
            await until(client, lambda models: models[0].status is InstanceState.DRAINING)
            await http.get("/fake/finish")
        await unloading
        assert await client.models() == ()
