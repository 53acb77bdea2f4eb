"""The attached engines of a node: their loaded models, their load cycles, and their restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cortex_common.clock import Clock
from cortex_common.errors import (
    Conflict,
    CortexError,
    InstanceBusy,
    NotFound,
    NotSupported,
    nearest_names,
)
from cortex_common.schema.instances import (
    AttachedEngine,
    InstanceState,
    RestartRequest,
    RestartResponse,
)
from neuron_server.harness.base import AttachedHarness
from neuron_server.harness.registry import HarnessRegistry, RegistryEntry
from neuron_server.inflight import InflightCounts
from neuron_server.instances.attached_runner import externally_loaded
from neuron_server.instances.registry import InstanceRegistry, ManagedInstance
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import Instance, advance
from neuron_server.state_store import StateDir

_IN_TRANSITION = {InstanceState.LOADING, InstanceState.DRAINING, InstanceState.STOPPING}


class AttachedEngines:
    """All attached engines of a node.

    Args:
        registry: the harnesses.
        instances: the node's instances.
        inflight: the requests in flight of each instance.
        host: the runtime.
        state: keeps the load cycles across restarts of the neuron.
        clock: measures durations and provides timestamps.
        manage: adds an instance to the node.
    """

    def __init__(
        self,
        registry: HarnessRegistry,
        instances: InstanceRegistry,
        inflight: InflightCounts,
        host: RunnerHost,
        state: StateDir,
        clock: Clock,
        manage: Callable[[Instance, RegistryEntry], ManagedInstance],
    ) -> None:
        self._registry = registry
        self._instances = instances
        self._inflight = inflight
        self._host = host
        self._state = state
        self._clock = clock
        self._manage = manage
        self._reachable: set[str] = set()
        self._restarts: dict[str, asyncio.Task[RestartResponse]] = {}
        self._saved = state.load_cycles()
        for _, harness in registry.attached_harnesses():
            harness.load_cycles = self._saved.get(harness.name, harness.load_cycles)

    async def refresh(self) -> None:
        """Add an instance for each model that other clients have loaded."""
        for entry, harness in self._registry.attached_harnesses():
            models = await harness.list_models()
            (self._reachable.discard if models is None else self._reachable.add)(harness.name)
            snapshots = [m.instance for m in self._instances if m.entry is entry]
            existing = [i for i in snapshots if i.state is not InstanceState.FAILED]
            now = self._clock.unix()
            found = externally_loaded(
                self._state.node_id, harness.name, models or {}, existing, now
            )
            for instance in found:
                for other in snapshots:
                    if other not in existing and other.spec.model_id == instance.spec.model_id:
                        self._instances.remove(other.id)
                self._manage(instance, entry).runner.start()
        self._save()

    async def close(self) -> None:
        """Stop waiting for restarts; the service manager completes them regardless."""
        tasks = tuple(self._restarts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def views(self) -> tuple[AttachedEngine, ...]:
        """Return the body of GET /harnesses."""
        return tuple(
            AttachedEngine(
                harness=harness.name,
                url=harness.url,
                reachable=harness.name in self._reachable,
                restartable=harness.restartable,
                restarting=harness.name in self._restarts,
                cycles=harness.load_cycles.count,
            )
            for _, harness in self._registry.attached_harnesses()
        )

    async def restart(self, name: str, request: RestartRequest) -> RestartResponse:
        """Restart an engine, once for all concurrent callers; return once it lists its models again.

        Raises:
            NotFound: there is no such harness.
            NotSupported: it is not attached, or its systemd unit is not configured.
            Conflict: one of its models is being loaded or unloaded.
            InstanceBusy: requests are in flight and must not be cut.
            LoadFailed: systemd refused, or the engine did not come back.
        """
        entry, harness = self._attached(name)
        if name not in self._restarts:
            if harness.load_cycles.count < request.min_cycles:
                models = await harness.list_models() or {}
                return RestartResponse(status="kept", models=_loaded_names(models))
            if not request.force and await self._is_busy(entry, harness):
                raise InstanceBusy(f"the engine at {harness.url} has requests in flight")
        if name not in self._restarts:
            self._check_no_transition(entry)
            task = asyncio.create_task(self._restart(entry, harness), name=f"restart {name}")
            self._restarts[name] = task
            task.add_done_callback(lambda _: self._restarts.pop(name))
        return await asyncio.shield(self._restarts[name])

    def _attached(self, name: str) -> tuple[RegistryEntry, AttachedHarness]:
        if name not in self._registry.names:
            hints = tuple(
                f"did you mean {near!r}?" for near in nearest_names(name, self._registry.names)
            )
            raise NotFound(f"this node has no harness {name!r}", hints=hints)
        entry = self._registry.get(name)
        harness = entry.harness
        if not isinstance(harness, AttachedHarness):
            raise NotSupported(
                f"harness {name!r} starts a process per instance, so it has no engine to restart",
                hints=("unload the instance and load it again",),
            )
        if not harness.restartable:
            raise NotSupported(
                f"no systemd unit is configured for the engine at {harness.url}",
                hints=(
                    f"set unit of harness {name!r} in neuron.toml",
                    "or restart the engine yourself; the node detects it",
                ),
            )
        return entry, harness

    async def _is_busy(self, entry: RegistryEntry, harness: AttachedHarness) -> bool:
        """Return whether requests are in flight, including relayed ones, as not every engine reports them."""
        ids = [m.instance.id for m in self._instances if m.entry is entry]
        relayed = any(self._inflight.count(instance) for instance in ids)
        return relayed or bool(await harness.in_flight(harness.url))

    def _check_no_transition(self, entry: RegistryEntry) -> None:
        for managed in self._instances:
            instance = managed.instance
            if managed.entry is entry and instance.state in _IN_TRANSITION:
                raise Conflict(
                    f"instance {instance.id} of this engine is {instance.state}",
                    hints=("try again when that has finished",),
                    details={"instance": instance.id, "state": str(instance.state)},
                )

    async def _restart(self, entry: RegistryEntry, harness: AttachedHarness) -> RestartResponse:
        """Restart an engine; its ready instances are loading meanwhile."""
        started = self._clock.monotonic()
        cycles = harness.load_cycles.count
        self._host.record_event("engine_restart_started", harness=harness.name, cycles=cycles)
        ready = [
            managed
            for managed in self._instances
            if managed.entry is entry and managed.instance.state is InstanceState.READY
        ]
        stage = "waiting for the engine's restart"
        for managed in ready:
            self._host.update(advance(managed.instance, InstanceState.LOADING, stage=stage))
        await asyncio.gather(*(managed.runner.detach() for managed in ready))
        try:
            models = await harness.restart()
        except CortexError as error:
            self._host.record_event(
                "engine_restart_failed", logging.ERROR, harness=harness.name, reason=error.message
            )
            raise
        finally:
            for managed in ready:
                if managed.instance.state is InstanceState.LOADING:
                    managed.runner.start()
            self._save()
        seconds = round(self._clock.monotonic() - started, 3)
        self._host.record_event("engine_restarted", harness=harness.name, seconds=seconds)
        return RestartResponse(status="restarted", models=_loaded_names(models), seconds=seconds)

    def _save(self) -> None:
        cycles = {
            harness.name: harness.load_cycles for _, harness in self._registry.attached_harnesses()
        }
        if cycles != self._saved:
            self._state.save_load_cycles(cycles)
            self._saved = cycles


def _loaded_names(models: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(sorted(name for name, loaded in models.items() if loaded))
