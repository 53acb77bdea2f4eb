"""One task per neuron that keeps the fleet's picture of it true."""

from __future__ import annotations

import asyncio
import logging
import random

from cortex_common.client.control import EventCursor
from cortex_common.client.neuron import NeuronClient
from cortex_common.errors import CortexError
from cortex_common.log import LEVELS
from cortex_common.schema.instances import LifecycleEntry
from cortex_server.audit_log import ACTOR
from cortex_server.fleet.state import Fleet

log = logging.getLogger("cortex.nodes")

SILENCE_S = 6.0
"""A neuron reads its devices once a second and says so; this long without a word means it is gone."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0
"""A host that boots after its gateway is found within the longer one; fifty that are off cost next to nothing."""


class NeuronWatcher:
    """Follows a neuron's events; reconnects with growing pauses.

    Args:
        node: its name in the fleet.
        client: of that neuron; the watcher does not close it.
        fleet: what it reports to.
    """

    def __init__(self, node: str, client: NeuronClient, fleet: Fleet) -> None:
        self._node = node
        self._client = client
        self._fleet = fleet

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = FIRST_PAUSE_S
        cursor = EventCursor()
        ACTOR.set(f"node {self._node}")
        while True:
            try:
                known: str | None = None
                async for news in self._client.watch(silence_s=SILENCE_S, cursor=cursor):
                    pause = FIRST_PAUSE_S
                    if isinstance(news, LifecycleEntry):
                        self._pass_on(news)
                        continue
                    if news.discovery != known:
                        self._fleet.discovered(self._node, await self._client.discovery())
                        known = news.discovery
                    self._fleet.reported(self._node, news)
                self._fleet.lost(self._node, "the neuron ended its event stream")
            except CortexError as failed:
                self._fleet.lost(self._node, failed.message)
            # Spread out, so that a fleet that lost its network does not come back as one burst.
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - no secret
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _pass_on(self, entry: LifecycleEntry) -> None:
        """Log what a node decided or saw here too: one log tells the fleet's whole story."""
        facts = {"node": self._node, **entry.facts}
        log.log(LEVELS[entry.level], entry.event, extra={"facts": facts})
