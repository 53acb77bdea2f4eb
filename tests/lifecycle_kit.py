"""A real neuron with the embedded engine, and real gateways in front of it, in this process's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from cortex_common.client.gateway import OperatorClient
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.neuron import NeuronConfig
from cortex_http.server import Server
from cortex_server.gateway import listening
from cortex_server.main import Gateway
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf
from neuron_server.main import create_runtime, create_server
from neuron_server.runtime import Runtime
from neuron_server.token_auth import publish_token

NODE_TOKEN = "token-of-the-neurons-of-these-tests"
MODEL_MB = 256
"""MiB that a tiny model is promised; its process takes less."""


@contextlib.asynccontextmanager
async def _serving(server: Server, sock: socket.socket) -> AsyncIterator[str]:
    with sock:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            await until(lambda: server.started or task.done())
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.stop()
            await task


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return once a condition holds.

    Raises:
        TimeoutError: it does not within the time.
    """
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Neuron:
    """A running neuron."""

    url: str
    runtime: Runtime


def port_of_a_node_that_is_off() -> int:
    """Return a port for `neuron`, of which gateways know before the neuron is started."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    publish_token(port, NODE_TOKEN, os.environ)
    return port


@contextlib.asynccontextmanager
async def neuron(
    directory: Path, memory_mb: int, ports: tuple[int, int] = (18100, 18199), port: int = 0
) -> AsyncIterator[Neuron]:
    """Run a neuron whose one device is a budget of RAM."""
    config = NeuronConfig.model_validate(
        {
            "neuron": {"state_dir": directory / "neuron", "token": NODE_TOKEN},
            "cpu": {"offer": True, "memory_mb": memory_mb},
            "harnesses": [{"name": "embedded", "port_range": ports}],
        }
    )
    runtime = create_runtime(config, None)
    server = create_server(config, runtime)
    sock = listening(f"127.0.0.1:{port}", "listen")
    publish_token(sock.getsockname()[1], runtime.token, os.environ)
    async with _serving(server, sock) as url:
        try:
            yield Neuron(url, runtime)
        finally:
            runtime.changes.close()


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway and its clients."""

    url: str
    gateway: Gateway
    http: httpx.AsyncClient
    operator: OperatorClient

    async def chat(self, model: str, **more: object) -> httpx.Response:
        """Request a response of a few tokens."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 3,
        }
        return await self.http.post("/v1/chat/completions", json=body | more)


@contextlib.asynccontextmanager
async def gateway(
    neurons: dict[str, str], models: tuple[ModelConfig, ...], **sections: object
) -> AsyncIterator[Served]:
    """Run a gateway for these neurons (name -> URL)."""
    config = GatewayConfig.model_validate(
        {
            "gateway": {"metrics_listen": None},
            "neurons": [{"name": n, "endpoint": url} for n, url in neurons.items()],
        }
        | sections
    )
    made = Gateway(config, Catalogue(models=models))
    sock = listening("127.0.0.1:0", "listen")
    async with (
        made.running(),
        made.serving_operators(sock.getsockname()[1]),
        _serving(made.server(), sock) as url,
        httpx.AsyncClient(base_url=url, timeout=60.0) as http,
        OperatorClient(url, who="the gateway") as operator,
    ):
        yield Served(url, made, http, operator)


@cache
def _weights(name: str) -> bytes:
    """Provide a model file, created once per run."""
    with TemporaryDirectory(prefix="cortex-test-") as folder:
        return write_tiny_gguf(Path(folder) / "tiny.gguf", seed=sum(name.encode())).read_bytes()


def tiny(directory: Path, name: str, **more: object) -> ModelConfig:
    """Write a tiny model and return its model config."""
    path = directory / f"{name}.gguf"
    path.write_bytes(_weights(name))
    return ModelConfig.model_validate(
        {"id": name, "harness": "embedded", "source": str(path), "vram_mb": MODEL_MB} | more
    )
