"""Observes a running engine: its connections, its CPU time, its health check, and what is reported about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from cortex_common.schema.instances import InstanceId
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.process.descriptors import can_open_file
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.process_table import read_table
from neuron_server.process.tcp_progress import acknowledged_bytes
from neuron_server.usage import FailureStreak


class EngineWitness:
    """Observes a running engine for the monitor of its liveness.

    Args:
        instance: the instance's id.
        engine: its processes.
        host: the runtime.
        is_healthy: runs its health check.
    """

    def __init__(
        self,
        instance: InstanceId,
        engine: EngineProcess,
        host: RunnerHost,
        is_healthy: Callable[[], Awaitable[bool]],
    ) -> None:
        self._id = instance
        self._engine = engine
        self._host = host
        self._is_healthy = is_healthy

    def sent(self) -> Mapping[bytes, int]:
        """Return the bytes that each of its connections has delivered."""
        return acknowledged_bytes(self._host.current(self._id).port)

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used."""
        table = read_table()
        return table.cpu_seconds(self._engine.pids(table))

    async def is_healthy(self) -> bool:
        """Return whether its health check succeeds; one that fails for want of descriptors says nothing."""
        return await self._is_healthy() or not can_open_file()

    async def in_flight(self) -> int:
        """Return its requests in flight."""
        return await self._host.requests_in_flight(self._id)

    def failures(self) -> FailureStreak:
        """Return the requests that it has failed since it last answered one."""
        return self._host.failure_streak(self._id)

    def forget_failures(self) -> None:
        """Start counting failures again."""
        self._host.forget_failures(self._id)
