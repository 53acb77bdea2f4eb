"""Requests in flight per instance, both relayed by this neuron and sent to engines directly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from cortex_common.clock import Clock
from cortex_common.log import event
from cortex_common.schema.instances import InstanceId, InstanceState
from cortex_common.schema.usage import REPORT_EXPIRY_S, InstanceUsage
from neuron_server.instances.registry import ManagedInstance
from neuron_server.usage import LastUse

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0


class InflightCounts:
    """Requests in flight, by instance.

    Args:
        last_use: learns of every use.
        clock: for the age of reports.

    Attributes:
        relayed: requests that currently pass through this neuron's relay.
    """

    def __init__(self, last_use: LastUse, clock: Clock) -> None:
        self.relayed: dict[InstanceId, int] = {}
        self._last_use = last_use
        self._clock = clock
        self._of_gateways: dict[InstanceId, dict[str, tuple[int, float]]] = {}
        self._reported: dict[InstanceId, int] = {}

    def begin_relayed(self, instance: InstanceId) -> None:
        """Count a request that the relay forwards."""
        self.relayed[instance] = self.relayed.get(instance, 0) + 1
        self._last_use.record(instance)

    def end_relayed(self, instance: InstanceId) -> None:
        """Count the end of a request that the relay forwarded."""
        remaining = self.relayed[instance] - 1
        if remaining:
            self.relayed[instance] = remaining
        else:
            del self.relayed[instance]
        self._last_use.record(instance)

    def record_report(self, gateway: str, usage: InstanceUsage) -> None:
        """Take a gateway's report about one of its instances, which holds for `REPORT_EXPIRY_S`."""
        self._last_use.record(usage.instance_id, usage.idle_s)
        gateways = self._of_gateways.setdefault(usage.instance_id, {})
        if usage.in_flight:
            gateways[gateway] = (usage.in_flight, self._clock.monotonic() + REPORT_EXPIRY_S)
        else:
            gateways.pop(gateway, None)

    def forget(self, instance: InstanceId) -> None:
        """Forget an instance that is gone."""
        self._of_gateways.pop(instance, None)
        self._last_use.forget(instance)

    def count(self, instance: InstanceId) -> int:
        """Return the requests in flight: the highest count of the relay, the gateways and the engine."""
        now = self._clock.monotonic()
        reports = self._of_gateways.get(instance, {}).values()
        of_gateways = sum(count for count, expires in reports if expires > now)
        return max(self.relayed.get(instance, 0), self._reported.get(instance, 0), of_gateways)

    async def refresh(self, managed: ManagedInstance) -> int:
        """Query the engine, then return `count`; an engine that reports nothing, or nonsense, counts as idle."""
        url = managed.runner.url(managed.instance.port)
        try:
            reported = await managed.entry.harness.in_flight(url) or 0
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            event(log, "engine_count_unreadable", logging.DEBUG, url=url, reason=error)
            reported = 0
        self._reported[managed.instance.id] = max(0, reported)
        return self.count(managed.instance.id)

    async def poll(
        self, instances: Iterable[ManagedInstance], on_change: Callable[[], None]
    ) -> None:
        """Query all engines periodically, apart from device readings so that a slow engine can't delay those."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            before = dict(self._reported)
            await self._refresh_all(instances)
            if before != self._reported:
                on_change()

    async def _refresh_all(self, instances: Iterable[ManagedInstance]) -> None:
        """Query every ready engine except attached ones, which report only the sum over their models."""
        ready = [
            managed
            for managed in instances
            if managed.instance.state is InstanceState.READY and not managed.instance.attached
        ]
        await asyncio.gather(*(self.refresh(managed) for managed in ready))
        queried = {managed.instance.id for managed in ready}
        for instance in queried:
            if self.count(instance):
                self._last_use.record(instance)
        self._reported = {i: count for i, count in self._reported.items() if i in queried}
