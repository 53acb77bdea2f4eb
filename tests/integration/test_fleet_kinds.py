"""A gateway with a neuron that has devices of two kinds."""

from __future__ import annotations

from pathlib import Path

import httpx
from engines.fake_nvml import FakeGpu, FakeNvml
from engines.served_neuron import served
from rigs.inprocess_gateway import running_gateway

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.neuron import HarnessEntry, NeuronConfig, NeuronSection
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf
from neuron_server.hardware.cpu import CpuSource
from neuron_server.hardware.nvml import NvmlSource


async def test_an_engine_without_gpu_code_is_loaded_beside_the_card(tmp_path: Path) -> None:
    """A model config without a device kind is served where its engine can run."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    config = NeuronConfig(
        neuron=NeuronSection(state_dir=tmp_path / "state"),
        harnesses=(HarnessEntry(name="embedded"),),
    )
    model_config = ModelConfig(id="m", harness="embedded", source=str(weights), vram_mb=300)
    body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    devices = (NvmlSource(FakeNvml(FakeGpu(0))), CpuSource(2000))
    async with (
        served(config, devices) as neuron,
        running_gateway(model_config, neurons={"n": neuron.url}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=body)
        (instance,) = gateway.gateway.fleet.snapshot.instances()
        assert answer.status_code == 200, answer.text
        assert instance.devices == (1,)
        await gateway.wait_idle()
