"""Reports to the nodes how this gateway uses their instances, so that other gateways and the nodes know of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping

from cortex_common.client.neuron import NeuronClient
from cortex_common.clock import Clock
from cortex_common.errors import CortexError
from cortex_common.log import event
from cortex_common.schema.usage import REPORT_INTERVAL_S, InstanceUsage, UsageReport
from cortex_server.fleet.routing_table import Endpoint

log = logging.getLogger("cortex.fleet")

MIN_INTERVAL_S = 1.0
"""Seconds between two reports; whatever happens in between is one report."""

SEND_TIMEOUT_S = 3.0
"""Seconds that a node has to take a report; without it, the next one follows."""


class UsageReporter:
    """Sends each node the use of its instances, soon after it changes.

    Args:
        nodes: client of each node's neuron, by node name.
        clock: for how long instances have been idle.
    """

    def __init__(self, nodes: Mapping[str, NeuronClient], clock: Clock) -> None:
        self._nodes = nodes
        self._clock = clock
        self._gateway = uuid.uuid4().hex
        self._used: set[Endpoint] = set()
        self._sending: dict[str, asyncio.Lock] = {}
        self._wakeup = asyncio.Event()

    def record(self, endpoint: Endpoint) -> None:
        """Note that a request on an instance has started or ended."""
        if not self._used:
            self._wakeup.set()
        self._used.add(endpoint)

    async def run(self) -> None:
        """Report until cancelled; sleeps while nothing is used."""
        busy: set[Endpoint] = set()
        while True:
            with contextlib.suppress(TimeoutError):
                timeout_s = REPORT_INTERVAL_S if busy else None
                await asyncio.wait_for(self._wakeup.wait(), timeout_s)
            self._wakeup.clear()
            used, self._used = self._used | busy, set()
            busy = {endpoint for endpoint in used if endpoint.in_flight}
            by_node: dict[str, list[Endpoint]] = {}
            for endpoint in used:
                by_node.setdefault(endpoint.node, []).append(endpoint)
            await asyncio.gather(*(self._send(node, found) for node, found in by_node.items()))
            await asyncio.sleep(MIN_INTERVAL_S)

    async def flush(self, node: str) -> None:
        """Report to a node what it does not know yet, so that it counts no request that has ended."""
        used = [endpoint for endpoint in self._used if endpoint.node == node]
        self._used.difference_update(used)
        await self._send(node, used)

    async def _send(self, node: str, endpoints: list[Endpoint]) -> None:
        """Send a report, one at a time to each node, so that none overtakes another."""
        client = self._nodes.get(node)
        if client is None or not endpoints:
            return
        async with self._sending.setdefault(node, asyncio.Lock()):
            usages = tuple(self._usage(endpoint) for endpoint in endpoints)
            report = UsageReport(gateway=self._gateway, instances=usages)
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await client.report_usage(report)
            except (CortexError, TimeoutError) as error:
                event(log, "usage_report_failed", logging.DEBUG, node=node, reason=error)

    def _usage(self, endpoint: Endpoint) -> InstanceUsage:
        outcomes = endpoint.breaker.take_outcomes()
        return InstanceUsage(
            instance_id=endpoint.id,
            in_flight=endpoint.in_flight,
            idle_s=0.0 if endpoint.in_flight else max(0.0, self._clock.unix() - endpoint.last_used),
            succeeded=outcomes.succeeded,
            failed=outcomes.failed,
            failed_in_row=endpoint.breaker.failures,
            reason=(endpoint.breaker.reason or "")[:512],
        )
