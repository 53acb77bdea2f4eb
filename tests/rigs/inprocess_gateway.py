"""A complete gateway in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from cortex_common.config.access import KeyEntry, LimitsSection
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewayConfig, UpstreamEntry
from cortex_http.server import Server
from cortex_server.gateway import Gateway, listening
from rigs.fleet import free_port
from rigs.proxy import RAW_HOST


@dataclass
class InProcessGateway:
    """A running gateway.

    Attributes:
        port: port of the API.
    """

    gateway: Gateway
    server: Server
    port: int
    metrics_url: str

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        async with asyncio.timeout(10):
            while self.gateway.inflight.requests:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running_gateway(
    *models: ModelConfig,
    keys: tuple[KeyEntry, ...] = (),
    neurons: Mapping[str, str] | None = None,
    upstreams: tuple[UpstreamEntry, ...] = (),
    limits: LimitsSection | None = None,
    **gateway: object,
) -> AsyncIterator[InProcessGateway]:
    """Run a gateway in this event loop as `cortex serve gateway` does; `neurons` maps names to URLs."""
    port = free_port()
    config = GatewayConfig.model_validate(
        {
            "gateway": {
                "metrics_listen": f"127.0.0.1:{port}",
                "allowed_hosts": [RAW_HOST],
                **gateway,
            },
            "keys": keys,
            "limits": limits or LimitsSection(),
            "neurons": [{"name": n, "endpoint": url} for n, url in (neurons or {}).items()],
            "upstreams": upstreams,
        }
    )
    instance = Gateway(config, Catalogue(models=models))
    server = instance.server()
    with listening("127.0.0.1:0", "listen") as sock:
        port_of_api = sock.getsockname()[1]
        async with instance.running(), instance.serving_operators(port_of_api):
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0)
            try:
                yield InProcessGateway(
                    instance,
                    server,
                    port_of_api,
                    f"http://127.0.0.1:{port}",
                )
            finally:
                server.stop()
                await serving
