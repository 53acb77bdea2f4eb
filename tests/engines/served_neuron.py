"""A neuron served on the test's event loop, so that a test can access its runtime."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.neuron import NeuronConfig
from neuron_server.hardware.sample import DeviceSource
from neuron_server.main import create_runtime, create_server, listening
from neuron_server.runtime import Runtime
from neuron_server.token_auth import publish_token


@dataclass(frozen=True)
class ServedNeuron:
    """A listening neuron.

    Attributes:
        runtime: its runtime.
        port: port of its API, on loopback regardless of its configuration.
    """

    runtime: Runtime
    port: int

    @property
    def url(self) -> str:
        """Base URL of its API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers with its token."""
        return {"authorization": f"Bearer {self.runtime.token}"}

    def client(self) -> NeuronClient:
        """Return a client of the neuron."""
        return NeuronClient(self.url, who="the neuron", token=self.runtime.token)


@contextlib.asynccontextmanager
async def served(
    config: NeuronConfig, sources: tuple[DeviceSource, ...] | None = None
) -> AsyncIterator[ServedNeuron]:
    """Serve a neuron until the block exits."""
    runtime = create_runtime(config, sources)
    server = create_server(config, runtime)
    with listening("127.0.0.1", 0) as listener:
        publish_token(listener.getsockname()[1], runtime.token, os.environ)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                assert not serving.done(), serving.exception()
                await asyncio.sleep(0)
            yield ServedNeuron(runtime, listener.getsockname()[1])
        finally:
            runtime.changes.close()
            server.force_exit = True
            server.stop()
            await serving
