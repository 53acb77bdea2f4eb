"""How busy engines are, whoever keeps them so: callers that we relay, and callers that reach an engine themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.instances.registry import ManagedInstance

ASK_EVERY_S = 1.0


class InflightCounts:
    """Requests by instance.

    Attributes:
        relayed: those that pass through this neuron now.
    """

    def __init__(self) -> None:
        self.relayed: dict[InstanceId, int] = {}
        self._told: dict[InstanceId, int] = {}

    def of(self, instance: InstanceId) -> int:
        """Requests on an instance: what is relayed to it, or what its engine told last where that is more."""
        return max(self.relayed.get(instance, 0), self._told.get(instance, 0))

    async def ask(self, managed: ManagedInstance) -> int:
        """The same with what its engine tells now; an engine that does not tell counts as idle."""
        url = managed.runner.url(managed.instance.port)
        own = await managed.registered.harness.in_flight(url) or 0
        self._told[managed.instance.id] = own
        return self.of(managed.instance.id)

    async def watch(
        self, instances: Iterable[ManagedInstance], changed: Callable[[], None]
    ) -> None:
        """Ask again and again; no part of the readings, which a slow engine must not hold up."""
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            before = dict(self._told)
            await self._ask_all(instances)
            if before != self._told:
                changed()

    async def _ask_all(self, instances: Iterable[ManagedInstance]) -> None:
        """Ask every engine that serves; one of somebody else's tells the sum over its models, which is no use."""
        ready = [
            managed
            for managed in instances
            if managed.instance.state is InstanceState.READY and not managed.instance.attached
        ]
        await asyncio.gather(*(self.ask(managed) for managed in ready))
        asked = {managed.instance.id for managed in ready}
        self._told = {instance: n for instance, n in self._told.items() if instance in asked}
