"""Reports to the nodes how this gateway uses their instances, so that other gateways and the nodes know of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping

from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import Clock
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.usage import InstanceUsage, UsageReport
from cortex_server.fleet.routing_table import Endpoint

log = logging.getLogger("cortex.fleet")

MIN_INTERVAL_S = 1.0
"""Seconds between two reports; whatever happens in between is one report."""

BUSY_INTERVAL_S = 5.0
"""Seconds after which instances with requests in flight are reported again."""


class UsageReporter:
    """Sends each node the use of its instances, soon after it changes.

    Args:
        nodes: client of each node's neuron, by node name.
        clock: for how long instances have been idle.
    """

    def __init__(self, nodes: Mapping[str, NeuronClient], clock: Clock) -> None:
        self._nodes = nodes
        self._clock = clock
        self._used: set[Endpoint] = set()
        self._wakeup = asyncio.Event()

    def record(self, endpoint: Endpoint) -> None:
        """Note that a request on an instance has begun or ended."""
        if not self._used:
            self._wakeup.set()
        self._used.add(endpoint)

    async def run(self) -> None:
        """Report until cancelled; sleeps while nothing is used."""
        while True:
            busy = {endpoint for endpoint in self._used if endpoint.in_flight}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wakeup.wait(), BUSY_INTERVAL_S if busy else None)
            self._wakeup.clear()
            used, self._used = self._used | busy, set()
            await self._send(used)
            await asyncio.sleep(MIN_INTERVAL_S)
            self._used |= {endpoint for endpoint in used if endpoint.in_flight}

    async def _send(self, endpoints: Iterable[Endpoint]) -> None:
        by_node: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            if endpoint.node in self._nodes:
                by_node.setdefault(endpoint.node, []).append(endpoint)
        await asyncio.gather(*(self._send_to(node, found) for node, found in by_node.items()))

    async def _send_to(self, node: str, endpoints: list[Endpoint]) -> None:
        usages = tuple(self._usage(endpoint) for endpoint in endpoints)
        try:
            await self._nodes[node].report_usage(UsageReport(instances=usages))
        except (CortexError, KeyError) as error:  # KeyError: the node was just removed
            event(log, "usage_report_failed", logging.DEBUG, node=node, reason=error)

    def _usage(self, endpoint: Endpoint) -> InstanceUsage:
        outcomes = endpoint.breaker.take_outcomes()
        return InstanceUsage(
            instance_id=endpoint.id,
            idle_s=0.0 if endpoint.in_flight else max(0.0, self._clock.unix() - endpoint.last_used),
            succeeded=outcomes.succeeded,
            failed=outcomes.failed,
            failed_in_row=endpoint.breaker.failures,
            reason=(endpoint.breaker.reason or "")[:512],
        )
