"""Streams through gateway and relay to a real llama.cpp server.

It announces that it keeps the connection (`Keep-Alive: timeout=5, max=100`) and closes it after each streamed response.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import pytest
from engines.build_xllamacpp import find
from engines.neuron_rig import NeuronRig, load
from rigs.gateway import gateway_process, neuron_table

from cortex_common.schema.instances import InstanceState, LoadSpec
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

WHEEL = find()
pytestmark = [
    pytest.mark.llama,
    pytest.mark.slow,
    pytest.mark.skipif(WHEEL is None, reason="no xllamacpp: run make engines ARGS=xllamacpp"),
]

ENGINE = Path(__file__).parents[1] / "engines" / "xllamacpp_engine.py"

STREAMS, CLIENTS = 1000, 4


def harness(weights: Path) -> str:
    """Return a harness for the wheel's server."""
    argv = [sys.executable, str(ENGINE), "--wheel", str(WHEEL), "--weights", str(weights)]
    argv += ["--host", "{host}", "--port", "{port}", "--model", "{model}"]
    return f'[[harnesses]]\nname = "real"\nkind = "command"\ncommand = {argv}\n'


@pytest.mark.timeout(600)
async def test_every_stream_to_a_real_engine_is_complete(tmp_path: Path) -> None:
    """A thousand streams over kept connections, several at a time and back to back, without a failure."""
    weights = write_tiny_gguf(tmp_path / "tiny.gguf", seed=5)
    rig = NeuronRig(tmp_path / "neuron", harnesses=harness(weights), listen="0.0.0.0:0")
    try:
        async with rig.start().client() as neuron:
            spec = {"model_id": "real", "harness": "real", "vram_mb": 200}
            await load(neuron, LoadSpec.model_validate(spec))
            (tmp_path / "gateway").mkdir()
            async with (
                gateway_process(tmp_path / "gateway", neuron_table("n", rig.url)) as gateway,
                httpx.AsyncClient(base_url=gateway.url, timeout=60) as client,
            ):
                await gateway.until(
                    lambda fleet: any(
                        i.state is InstanceState.READY for n in fleet.nodes for i in n.instances
                    )
                )
                body = {
                    "model": "real",
                    "messages": [{"role": "user", "content": "hi"}],
                    "max_tokens": 4,
                    "stream": True,
                }
                failures: list[str] = []

                async def stream(count: int) -> None:
                    for _ in range(count):
                        response = await client.post("/v1/chat/completions", json=body)
                        if not response.text.endswith("data: [DONE]\n\n"):
                            failures.append(f"{response.status_code} {response.text[:200]}")

                await asyncio.gather(*(stream(STREAMS // CLIENTS) for _ in range(CLIENTS)))
                assert failures == []
            assert "response_interrupted" not in rig.log.read_text()
    finally:
        rig.close()
