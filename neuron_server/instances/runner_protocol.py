"""The interfaces between a runner and the runtime."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cortex_common.schema.instances import InstanceId
from neuron_server.instances.state_machine import Instance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.usage import FailureStreak


class Runner(Protocol):
    """Runs one instance; the runtime's view of `EngineRunner` and `AttachedRunner`."""

    @property
    def engine(self) -> EngineProcess | None:
        """The engine's process, if this node started it and it runs."""
        ...

    def url(self, port: int) -> str:
        """Return the base URL of the engine, as this host reaches it."""
        ...

    def start(self, adopted: EngineProcess | None = None) -> None:
        """Load the model and watch it from then on, in a task; `adopted` is an engine that already runs."""
        ...

    async def stop(self) -> None:
        """Stop the engine; nothing of the instance is left when this returns."""
        ...

    def fail(self, reason: str, kind: str) -> None:
        """Take the instance out of service now, stop its engine, and mark it as failed."""
        ...

    async def detach(self) -> None:
        """Stop watching; the engine keeps running."""
        ...


class RunnerHost(Protocol):
    """What a runner needs from the runtime; all calls that are not awaited return immediately."""

    def current(self, instance: InstanceId) -> Instance:
        """Return the current snapshot of an instance."""
        ...

    def record_event(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        """Add an entry to the event log."""
        ...

    def count_failure(self, instance: InstanceId, kind: str) -> None:
        """Count a failure of an instance's engine: see `EngineFailures`."""
        ...

    def update(self, instance: Instance) -> None:
        """Replace the snapshot of an instance, save it if needed, and notify subscribers."""
        ...

    def pick_port(self, instance: InstanceId) -> int:
        """Return another free port of the range of an instance's harness."""
        ...

    async def measure(self) -> None:
        """Read the devices now and apply the measurements."""
        ...

    async def requests_in_flight(self, instance: InstanceId) -> int:
        """Return the requests in flight of an instance, as far as anyone reports them."""
        ...

    def failure_streak(self, instance: InstanceId) -> FailureStreak:
        """Return the requests that an instance has failed since it last answered one."""
        ...

    def forget_failures(self, instance: InstanceId) -> None:
        """Start counting failed requests again."""
        ...

    def held_mb(self, instance: InstanceId) -> int:
        """Return the MiB per device that an instance holds or has reserved."""
        ...

    async def readmit(self, instance: InstanceId) -> None:
        """Reserve memory for the restart of an instance's engine.

        Raises:
            DoesNotFit: another process has taken the memory meanwhile.
        """
        ...

    def loading(self, instance: InstanceId) -> AbstractAsyncContextManager[None]:
        """Return a context in which an instance's engine is started and loads: see `device_order`."""
        ...
