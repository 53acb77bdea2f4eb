"""Probes of hosts whose node can't be reached, so that requests on a dead host end within seconds.

A node that can't be reached is not necessarily lost: its neuron can restart while its engines keep running. A dead host
accepts no connection; that one which was open before is dead would otherwise be noticed after minutes.
"""

from __future__ import annotations

import asyncio

from cortex_http.pool import ConnectError, ConnectionPool, OutOfResources
from cortex_server.proxy.engine_address import EngineAddress

_INTERVAL_S = 3.0
"""Pause between two probes of an address."""


class HostProbes:
    """Probes addresses, one connection at a time for each.

    Args:
        pool: Pool whose connections to dead hosts are dropped.
    """

    def __init__(self, pool: ConnectionPool[EngineAddress]) -> None:
        self._pool = pool
        self._tasks: dict[EngineAddress, asyncio.Task[None]] = {}

    def probe(self, address: EngineAddress) -> None:
        """Open a connection to an address, unless that is under way or has just been done; drop all if it fails."""
        if address not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._probe(address))
            self._tasks[address] = task
            task.add_done_callback(lambda _: self._tasks.pop(address, None))

    async def _probe(self, address: EngineAddress) -> None:
        try:
            connection = await self._pool.connect(address)
        except OutOfResources:
            pass  # this host's own fault
        except ConnectError as failed:
            self._pool.drop([address], f"its host is gone: {failed.reason}")
        else:
            connection.close()
        await asyncio.sleep(_INTERVAL_S)

    def close(self) -> None:
        """Cancel all probes."""
        for task in tuple(self._tasks.values()):
            task.cancel()
