"""State that all requests of the proxy share."""

from __future__ import annotations

import asyncio
from time import perf_counter

from cortex_common.config.access import LimitsSection
from cortex_common.config.gateway import GatewaySection
from cortex_http.pool import ConnectionPool
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.admission_queue import FairQueue
from cortex_server.fleet.circuit_breaker import RetryBudget
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.access_log import AccessLog
from cortex_server.proxy.body_budget import BodyBudget
from cortex_server.proxy.engine_address import EngineAddress, EngineAddresses
from cortex_server.proxy.host_probes import HostProbes
from cortex_server.proxy.load_balancer import LoadBalancer
from cortex_server.proxy.ports import Loads, Spans
from cortex_server.proxy.response_store import ResponseStore

_LAG_INTERVAL_S = 0.25


class ProxyContext:
    """The parts that all requests use.

    Args:
        fleet: Where requests can go.
        loads: Loads models that have no ready instance.
        metrics: Where requests are counted.
        settings: Limits and timeouts of [gateway].
        access_control: Who is allowed to send requests; by default only this host.
        limits: Limits of [limits].
        spans: Exporter of trace spans, if requests are traced.

    Attributes:
        admission: Queue of requests over the limit of requests in flight.
        pool: Connections to engines.
        host_probes: Probes of hosts whose node can't be reached.
        addresses: Addresses of engines.
        retries: Budget for second attempts.
        load_balancer: Chooses among several ready instances.
        responses: Recent responses of the Responses API.
        max_active: Limit on requests in flight, those in the admission queue included.
        max_body: Limit on a request's body, in bytes.
        bodies: Memory that all bodies use.
    """

    def __init__(
        self,
        fleet: Fleet,
        loads: Loads,
        metrics: Metrics,
        settings: GatewaySection,
        *,
        access_control: AccessControl | None = None,
        limits: LimitsSection | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.fleet = fleet
        self.loads = loads
        self.metrics = metrics
        self.access_control = access_control or AccessControl()
        self.spans = spans
        self.loop = asyncio.get_running_loop()
        self.pool: ConnectionPool[EngineAddress] = ConnectionPool(
            connect_timeout_s=settings.connect_timeout_s
        )
        self.host_probes = HostProbes(self.pool)
        self.addresses = EngineAddresses()
        self.access_log = AccessLog(self.loop)
        self.retries = RetryBudget()
        self.load_balancer = LoadBalancer()
        self.responses = ResponseStore()
        self.bodies = BodyBudget(0)
        self.admission = FairQueue(self.loop, limits or LimitsSection())
        metrics.queue = lambda: (self.admission.admitted, self.admission.queued)
        self.use(settings, self.admission.limits)

    def use(self, settings: GatewaySection, limits: LimitsSection) -> None:
        """Replace the settings."""
        self.settings = settings
        self.limits = self.admission.limits = limits
        self.max_active = limits.max_in_flight + limits.max_queued
        self.max_body = settings.max_body_mb * 1024 * 1024
        self.bodies.limit = limits.max_bodies_mb * 1024 * 1024
        self.responses.limit(limits.stored_responses_mb * 1024 * 1024)

    async def measure_lag(self) -> None:
        """Measure how late the event loop runs its timers, and let time earn retries, until cancelled."""
        while True:
            started = perf_counter()
            await asyncio.sleep(_LAG_INTERVAL_S)
            self.metrics.lag.observe(max(0.0, perf_counter() - started - _LAG_INTERVAL_S))
            self.retries.earn_by_time(_LAG_INTERVAL_S)

    def close(self) -> None:
        """Close idle connections to engines and write the last lines of the access log."""
        self.host_probes.close()
        self.pool.close()
        self.access_log.close()
