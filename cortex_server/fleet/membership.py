"""The nodes that the gateway follows: one watcher each, started and stopped as the configuration changes."""

from __future__ import annotations

from collections.abc import Iterable

from cortex_common.client.neuron import NeuronClient
from cortex_common.config.gateway import NeuronEntry, NodeEntry, UpstreamEntry
from cortex_common.supervision import BackgroundTasks
from cortex_server.fleet.credentials import CredentialsByNode, NodeCredentials
from cortex_server.fleet.neuron_watcher import NeuronWatcher
from cortex_server.fleet.state import Fleet
from cortex_server.fleet.upstream_watcher import UpstreamWatcher


class Membership:
    """Runs a watcher for each configured node.

    Args:
        fleet: where the watchers report.
        tasks: runs the watchers.

    Attributes:
        clients: clients of the nodes' neurons, by node name; the same mapping as long as the gateway runs.
    """

    def __init__(self, fleet: Fleet, tasks: BackgroundTasks) -> None:
        self.clients: dict[str, NeuronClient] = {}
        self._fleet = fleet
        self._entries: dict[str, NodeEntry] = {}
        self._credentials: dict[str, NodeCredentials] = {}
        self._tasks = tasks

    async def use_nodes(self, entries: Iterable[NodeEntry], credentials: CredentialsByNode) -> None:
        """Follow these nodes and no others; watchers of unchanged nodes keep running."""
        wanted = {entry.name: entry for entry in entries}
        for name in [
            n for n in self._entries if not self._is_unchanged(n, wanted.get(n), credentials)
        ]:
            await self._remove(name)
        self._fleet.use_nodes(tuple(wanted.values()))
        for name, entry in wanted.items():
            if name not in self._credentials:
                self._add(entry, credentials[name])
        self._entries = wanted

    async def close(self) -> None:
        """Stop following all nodes."""
        for name in tuple(self._entries):
            await self._remove(name)

    def _is_unchanged(
        self, name: str, entry: NodeEntry | None, credentials: CredentialsByNode
    ) -> bool:
        """Return whether a node is still reached in the same way; its labels may have changed."""
        if entry is None:
            return False
        current, previous = credentials[name], self._credentials[name]
        if (current.token, current.certificates) != (previous.token, previous.certificates):
            return False
        previous_entry = self._entries[name]
        if isinstance(entry, NeuronEntry) and isinstance(previous_entry, NeuronEntry):
            entry = entry.model_copy(update={"labels": previous_entry.labels})
        return previous_entry == entry

    def _add(self, entry: NodeEntry, credentials: NodeCredentials) -> None:
        if isinstance(entry, UpstreamEntry):
            watcher: NeuronWatcher | UpstreamWatcher = UpstreamWatcher(
                entry, credentials, self._fleet
            )
        else:
            client = NeuronClient(
                entry.endpoint,
                who=f"node {entry.name}",
                token=credentials.token,
                tls=credentials.tls,
            )
            self.clients[entry.name] = client
            watcher = NeuronWatcher(entry.name, client, self._fleet)
        self._credentials[entry.name] = credentials
        self._tasks.start(_task(entry.name), watcher.run)

    async def _remove(self, name: str) -> None:
        await self._tasks.stop(_task(name))
        if (client := self.clients.pop(name, None)) is not None:
            await client.close()
        del self._entries[name], self._credentials[name]


def _task(node: str) -> str:
    return f"watcher of {node}"
