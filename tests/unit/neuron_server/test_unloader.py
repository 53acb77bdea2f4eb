"""Stopping instances: whatever fails is tried again, and the most urgent request decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import cast

import pytest

from cortex_common.clock import ManualClock
from cortex_common.errors import InstanceBusy
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.harness.registry import RegistryEntry
from neuron_server.inflight import InflightCounts
from neuron_server.instances.registry import ManagedInstance
from neuron_server.instances.state_machine import Instance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.unloader import Unloader
from neuron_server.usage import FailureStreak, LastUse


class FakeHarness:
    """An engine whose count of requests a test sets."""

    def __init__(self) -> None:
        self.busy = 0
        self.asked = asyncio.Event()

    async def in_flight(self, _url: str) -> int | None:
        """Return the count."""
        self.asked.set()
        return self.busy


class FakeEntry:
    """An entry of the registry."""

    def __init__(self) -> None:
        self.harness = FakeHarness()


class FakeRunner:
    """A runner whose first stops fail."""

    engine: EngineProcess | None = None

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.stopped = False

    def url(self, port: int) -> str:
        """Return an address that nothing listens on."""
        return f"http://127.0.0.1:{port}"

    def start(self, adopted: EngineProcess | None = None) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Fail, or stop."""
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        self.stopped = True

    def fail(self, reason: str, kind: str) -> None:
        """Do nothing."""

    async def detach(self) -> None:
        """Do nothing."""


class FakeHost:
    """A runtime of one instance."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.managed: ManagedInstance | None = None

    def current(self, _instance: InstanceId) -> Instance:
        """Return the instance."""
        assert self.managed is not None
        return self.managed.instance

    def record_event(self, event: str, level: int = logging.INFO, **_facts: object) -> None:
        """Keep the event."""
        self.events.append(event)

    def count_failure(self, instance: InstanceId, kind: str) -> None:
        """Do nothing."""

    def update(self, instance: Instance) -> None:
        """Take the instance."""
        assert self.managed is not None
        self.managed.instance = instance

    def pick_port(self, _instance: InstanceId) -> int:
        """Return a port."""
        return 1

    async def measure(self) -> None:
        """Do nothing."""

    async def requests_in_flight(self, _instance: InstanceId) -> int:
        """Return none."""
        return 0

    def failure_streak(self, _instance: InstanceId) -> FailureStreak:
        """Return no failures."""
        return FailureStreak()

    def forget_failures(self, instance: InstanceId) -> None:
        """Do nothing."""


class Node:
    """A node with one ready instance."""

    def __init__(self, stop_failures: int = 0) -> None:
        self.entry = FakeEntry()
        self.runner = FakeRunner(stop_failures)
        self.host = FakeHost()
        instance = Instance(
            id=InstanceId("i"),
            spec=LoadSpec(model_id="m", harness="h"),
            devices=(),
            granted_mb=0,
            port=1,
            state=InstanceState.READY,
        )
        self.managed = ManagedInstance(instance, self.runner, cast(RegistryEntry, self.entry))
        self.host.managed = self.managed
        self.clock = ManualClock()
        self.removed: list[InstanceId] = []
        self.unloader = Unloader(
            InflightCounts(LastUse(self.clock), self.clock),
            self.host,
            self.clock,
            free_mb=lambda _devices: [],
            before_stop=lambda _instance: None,
            stopping=lambda _instance: contextlib.nullcontext(),
            after_stop=lambda instance: self.removed.append(instance.id),
        )


async def test_a_stop_that_fails_is_tried_again():
    """An engine that could not be stopped once, for lack of descriptors, is stopped all the same."""
    node = Node(stop_failures=1)
    await node.unloader.unload(node.managed, 0.0)
    assert node.runner.stopped
    assert node.removed == ["i"]
    assert "engine_stop_failed" in node.host.events


async def test_an_urgent_unload_overrides_a_softer_drain():
    """An operator's unload does not wait for the hour that a drain under way would wait."""
    node = Node()
    node.entry.harness.busy = 1
    soft = asyncio.create_task(node.unloader.unload(node.managed, 3600.0, force=False))
    await node.entry.harness.asked.wait()
    await node.unloader.unload(node.managed, 0.0, force=True)
    assert node.removed == ["i"]
    await soft


async def test_a_busy_instance_that_must_not_be_cut_serves_again():
    """A drain that ends in vain leaves an instance that can be unloaded later."""
    node = Node()
    node.entry.harness.busy = 1
    with pytest.raises(InstanceBusy):
        await node.unloader.unload(node.managed, 0.0, force=False)
    assert node.managed.instance.state is InstanceState.READY
    node.entry.harness.busy = 0
    await node.unloader.unload(node.managed, 0.0, force=False)
    assert node.removed == ["i"]
