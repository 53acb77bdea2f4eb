"""The watcher of one neuron: follows its event stream and keeps the fleet's state of the node up to date."""

from __future__ import annotations

import asyncio
import logging
import random

from cortex_common.backoff import Backoff
from cortex_common.client.control import EventCursor
from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import CortexError
from cortex_common.log import LEVELS
from cortex_common.schema.instances import LifecycleEntry
from cortex_server.audit_log import ACTOR
from cortex_server.fleet.state import Fleet

log = logging.getLogger("cortex.nodes")

SILENCE_TIMEOUT_S = 6.0
"""A neuron reports its devices once a second; after this long without a report it counts as unreachable."""

RECONNECT_BACKOFF = Backoff(
    initial_s=0.25,
    max_s=2.0,
    # Spreads reconnects, so that a fleet that lost its network does not come back in one burst.
    jitter=lambda: random.uniform(0.7, 1.3),  # noqa: S311 - not a secret
)
"""Short enough to find a host that boots after its gateway; fifty hosts that are off still cost next to nothing."""


class NeuronWatcher:
    """Follows a neuron's events and reconnects with exponential back-off.

    Args:
        node: name of the node in the fleet.
        client: client of its neuron; the watcher does not close it.
        fleet: where changes are reported.
    """

    def __init__(self, node: str, client: NeuronClient, fleet: Fleet) -> None:
        self._node = node
        self._client = client
        self._fleet = fleet

    async def run(self) -> None:
        """Watch until cancelled; whatever else ends it leaves the node unreachable until it runs again."""
        failures = 0
        cursor = EventCursor()
        ACTOR.set(f"node {self._node}")
        while True:
            try:
                discovery_id: str | None = None
                async for news in self._client.watch(silence_s=SILENCE_TIMEOUT_S, cursor=cursor):
                    failures = 0
                    if isinstance(news, LifecycleEntry):
                        self._forward_to_log(news)
                        continue
                    if news.discovery != discovery_id:
                        self._fleet.update_discovery(self._node, await self._client.discovery())
                        discovery_id = news.discovery
                    self._fleet.update_status(self._node, news)
                self._fleet.mark_unreachable(self._node, "the neuron closed its event stream")
            except CortexError as error:
                self._fleet.mark_unreachable(self._node, error.message)
            except Exception as error:
                self._fleet.mark_unreachable(self._node, f"its messages can't be read: {error!r}")
                raise
            failures += 1
            await asyncio.sleep(RECONNECT_BACKOFF.delay_s(failures))

    def _forward_to_log(self, entry: LifecycleEntry) -> None:
        """Log an event of the node here as well, so that the gateway's log covers the whole fleet."""
        fields = {**entry.fields, "node": self._node}
        log.log(LEVELS[entry.level], entry.event, extra={"fields": fields})
