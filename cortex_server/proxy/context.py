"""What all requests share."""

from __future__ import annotations

import asyncio
from time import perf_counter

from cortex_common.config.access import LimitsSection
from cortex_common.config.gateway import GatewaySection
from cortex_common.errors import Unavailable
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.admission_queue import FairQueue
from cortex_server.dataplane.pool import ConnectionPool
from cortex_server.fleet.circuit_breaker import RetryBudget
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics
from cortex_server.proxy.access_log import AccessLog
from cortex_server.proxy.load_balancer import LoadBalancer
from cortex_server.proxy.ports import Loads
from cortex_server.proxy.request import ProxyRequest
from cortex_server.proxy.tracing import Spans

_LAG_EVERY_S = 0.25


class ProxyContext:
    """The parts that a request needs, and the requests under way.

    Args:
        fleet: where requests can go.
        loads: who is asked when there is no ready instance.
        metrics: where requests are counted.
        settings: limits and timeouts.
        gate: who may ask; by default whoever is on this host.
        limits: how much at once.
        spans: who is told of requests as parts of distributed traces.

    Attributes:
        retries: how many second tries are left.
        chooser: which of several instances a request goes to.
        most: requests that may be here at once, worked on or waiting for their turn.
        active: all requests between their first header and their last byte.
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
        self.settings = settings
        self.access_control = access_control or AccessControl()
        self.limits = limits = limits or LimitsSection()
        self.most = limits.max_in_flight + limits.max_queued
        self.spans = spans
        self.loop = asyncio.get_running_loop()
        self.admission = FairQueue(self.loop, self.limits)
        metrics.queue = lambda: (self.admission.admitted, self.admission.queued)
        self.pool = ConnectionPool(connect_timeout_s=settings.connect_timeout_s)
        self.access_log = AccessLog(self.loop)
        self.retries = RetryBudget()
        self.chooser = LoadBalancer()
        self.active: set[ProxyRequest] = set()
        self.max_body = settings.max_body_mb * 1024 * 1024

    def use(self, settings: GatewaySection, limits: LimitsSection) -> None:
        """Work by other settings from now on."""
        self.settings = settings
        self.limits = self.admission.limits = limits
        self.most = limits.max_in_flight + limits.max_queued
        self.max_body = settings.max_body_mb * 1024 * 1024

    def cut_off(self) -> None:
        """End the requests that are still under way, each with an error that says so."""
        for exchange in tuple(self.active):
            exchange.cut_off(Unavailable("the gateway is stopping", retry_after=5.0))

    async def watch_lag(self) -> None:
        """Measure how late the event loop is; runs until cancelled."""
        while True:
            asked = perf_counter()
            await asyncio.sleep(_LAG_EVERY_S)
            self.metrics.lag.observe(max(0.0, perf_counter() - asked - _LAG_EVERY_S))

    async def watch_silence(self) -> None:
        """Give up on engines that fell silent; runs until cancelled.

        One task that looks at all requests once a second costs less than a timer for each.
        """
        while True:
            await asyncio.sleep(1.0)
            now = self.loop.time()
            for exchange in tuple(self.active):
                exchange.check_silence(now)

    def close(self) -> None:
        """Let go of all connections that nobody uses, and write the last lines of the journal."""
        self.pool.close()
        self.access_log.close()
