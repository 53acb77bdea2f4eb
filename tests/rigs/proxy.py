"""A gateway's proxy with engines chosen by the test: real sockets, real uvicorn, no neuron."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import httpx
import uvicorn

from cortex_common.clock import SystemClock
from cortex_common.config.access import LimitsSection
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewaySection, NeuronEntry
from cortex_common.errors import LoadFailed
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_common.schema.hardware import Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_http.server_protocol import protocol_for
from cortex_server.api.app import create_app
from cortex_server.auth.access_control import AccessControl
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.inflight import InflightRequests
from cortex_server.proxy.router import InferenceRouter
from cortex_server.proxy.timeouts import watch_timeouts

RAW_HOST = "x"
"""Host header of requests that tests write themselves."""


def ready(instance: str, model: str, url: str, parallel: int = 4) -> ModelInfo:
    """Return a ready instance as a node reports it."""
    return ModelInfo(
        id=ModelId(model),
        harness="scripted",
        status=InstanceState.READY,
        instance_id=InstanceId(instance),
        url=url,
        parallel=parallel,
    )


async def read_cut_stream(pieces: AsyncIterator[bytes]) -> bytes:
    """Read the rest of a stream whose body must be cut: that is what all clients notice after an error event."""
    rest = b""
    try:
        async for piece in pieces:
            rest += piece
    except httpx.RemoteProtocolError:
        return rest
    raise AssertionError("the stream ended properly")


class ScriptedLoads:
    """Replaces the controller: a load ends when the test sets its outcome."""

    def __init__(self, rig: ProxyRig) -> None:
        self._rig = rig
        self.waiting = 0
        self.requested = asyncio.Event()
        self.no_waiters = asyncio.Event()
        self.outcome: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    async def acquire(
        self, model_config: ModelConfig, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """Wait for the outcome that the test sets: (instance, url), or a message to fail with."""
        self.waiting += 1
        self.requested.set()
        try:
            instance, url = await asyncio.shield(self.outcome)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.no_waiters.set()
        if not url:
            raise LoadFailed(instance)
        self._rig.report("n1", ready(instance, model_config.id, url))
        return InstanceId(instance)

    def progress(self, model_id: ModelId) -> None:
        """Report no progress."""


@dataclass
class ProxyRig:
    """A running proxy.

    Attributes:
        port: port of the API.
        server: its server.
    """

    fleet: Fleet
    context: ProxyContext
    metrics: Metrics
    loads: ScriptedLoads | None = None
    inflight: InflightRequests | None = None
    port: int = 0
    server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    def report(self, node: str, *infos: ModelInfo) -> None:
        """Make a node report exactly these instances."""
        self.fleet.update_status(node, NodeStatus(health=Health(uptime_secs=1), models=infos))

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        async with asyncio.timeout(10):
            while self.inflight.requests:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running_proxy(
    engines: Mapping[str, str | Sequence[str]],
    *,
    model_configs: Sequence[ModelConfig] = (),
    settings: GatewaySection | None = None,
    access_control: AccessControl | None = None,
    limits: LimitsSection | None = None,
) -> AsyncIterator[ProxyRig]:
    """Run a proxy on a free port; `engines` maps a model to the URL or URLs of its ready instances."""
    metrics = Metrics()
    nodes = tuple(NeuronEntry(name=n, endpoint="http://127.0.0.1:1") for n in ("n1", "n2"))
    fleet = Fleet(nodes, Catalogue(models=tuple(model_configs)), SystemClock(), metrics)
    rig = ProxyRig(fleet, None, metrics)  # type: ignore[arg-type]  # set two lines below
    rig.loads = ScriptedLoads(rig)
    context = rig.context = ProxyContext(
        fleet,
        rig.loads,
        metrics,
        settings or GatewaySection(),
        access_control=access_control
        or AccessControl(trusted=TrustedHosts("gateway", frozenset({RAW_HOST}))),
        limits=limits,
    )
    rig.inflight = InflightRequests(context)
    rig.report(
        "n1",
        *(
            ready(f"{model.replace('/', '-')}-{number}", model, url)
            for model, urls in engines.items()
            for number, url in enumerate([urls] if isinstance(urls, str) else urls)
        ),
    )
    rig.report("n2")
    config = uvicorn.Config(
        create_app(fleet, lambda: context, routers=()),
        host="127.0.0.1",
        port=0,
        http=protocol_for(InferenceRouter(context, rig.inflight)),
        log_config=None,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    rig.server = server
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # pytest keeps its signals
    serving = asyncio.create_task(server.serve())
    silence = asyncio.create_task(watch_timeouts(rig.inflight.requests))
    try:
        while not server.started:
            await asyncio.sleep(0)
        rig.port = server.servers[0].sockets[0].getsockname()[1]
        yield rig
    finally:
        silence.cancel()
        server.should_exit = True
        await serving
        context.close()
        await asyncio.gather(silence, return_exceptions=True)
