"""The nodes that the gateway follows: a watcher each, which come and go with the configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.gateway import NeuronEntry, NodeEntry, UpstreamEntry
from cortex_server.fleet.credentials import Accesses, NodeAccess
from cortex_server.fleet.neuron_watcher import NeuronWatcher
from cortex_server.fleet.state import Fleet
from cortex_server.fleet.upstream_watcher import UpstreamWatcher

log = logging.getLogger("cortex.fleet")


class Membership:
    """See the module.

    Args:
        fleet: what the watchers report to.

    Attributes:
        clients: of the nodes' neurons, by name; the same mapping for as long as the gateway runs.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.clients: dict[str, NeuronClient] = {}
        self._fleet = fleet
        self._entries: dict[str, NodeEntry] = {}
        self._how: dict[str, NodeAccess] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def use(self, entries: Iterable[NodeEntry], how: Accesses) -> None:
        """Follow these nodes and no others; those that did not change are left alone."""
        wanted = {entry.name: entry for entry in entries}
        for name in [n for n in self._entries if not self._same(n, wanted.get(n), how)]:
            await self._drop(name)
        self._fleet.use_nodes(tuple(wanted.values()))
        for name, entry in wanted.items():
            if name not in self._watchers:
                self._add(entry, how[name])
        self._entries = wanted

    async def close(self) -> None:
        """Follow none any more."""
        for name in tuple(self._entries):
            await self._drop(name)

    def _same(self, name: str, entry: NodeEntry | None, how: Accesses) -> bool:
        """Whether a node is still asked in the same way; its labels may have changed."""
        if entry is None:
            return False
        now, then = how[name], self._how[name]
        if (now.token, now.certificates) != (then.token, then.certificates):
            return False
        before = self._entries[name]
        if isinstance(entry, NeuronEntry) and isinstance(before, NeuronEntry):
            entry = entry.model_copy(update={"labels": before.labels})
        return before == entry

    def _add(self, entry: NodeEntry, how: NodeAccess) -> None:
        if isinstance(entry, UpstreamEntry):
            watching = UpstreamWatcher(entry, how, self._fleet).run()
        else:
            client = NeuronClient(
                entry.endpoint, who=f"node {entry.name}", token=how.token, tls=how.tls
            )
            self.clients[entry.name] = client
            watching = NeuronWatcher(entry.name, client, self._fleet).run()
        self._how[entry.name] = how
        task = asyncio.create_task(watching, name=f"watch-{entry.name}")
        task.add_done_callback(_report)
        self._watchers[entry.name] = task

    async def _drop(self, name: str) -> None:
        self._watchers[name].cancel()
        await asyncio.gather(self._watchers.pop(name), return_exceptions=True)
        if (client := self.clients.pop(name, None)) is not None:
            await client.close()
        del self._entries[name], self._how[name]


def _report(task: asyncio.Task[None]) -> None:
    """A watcher that ends by itself is a bug that must not stay silent."""
    if not task.cancelled() and (failed := task.exception()) is not None:
        log.error("task_failed", exc_info=failed, extra={"facts": {"task": task.get_name()}})
