"""The engines that someone else runs: what is loaded in them, how long they have been at it, and their restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cortex_common.clock import Clock
from cortex_common.errors import Conflict, CortexError, NotFound, NotSupported, StillBusy, nearest
from cortex_common.schema.instances import (
    AttachedEngine,
    InstanceState,
    RestartAnswer,
    RestartRequest,
)
from neuron_server.harness.base import AttachedHarness
from neuron_server.harness.registry import Registered, Registry
from neuron_server.inflight import InflightCounts
from neuron_server.instances.attached_runner import loaded_by_others
from neuron_server.instances.registry import InstanceRegistry, ManagedInstance
from neuron_server.instances.runner import RunnerHost
from neuron_server.instances.state_machine import Instance, advance
from neuron_server.state_store import StateDir

_UNSETTLED = {InstanceState.LOADING, InstanceState.DRAINING, InstanceState.STOPPING}


class AttachedEngines:
    """All attached engines of a node.

    Args:
        registry: the harnesses.
        holdings: the instances.
        occupancy: how busy they are.
        ledger: the runtime.
        state: keeps the ages over restarts of the neuron.
        clock: for times and durations.
        hold: makes something an instance of the node.
    """

    def __init__(
        self,
        registry: Registry,
        instances: InstanceRegistry,
        inflight: InflightCounts,
        ledger: RunnerHost,
        state: StateDir,
        clock: Clock,
        hold: Callable[[Instance, Registered], ManagedInstance],
    ) -> None:
        self._registry = registry
        self._instances = instances
        self._inflight = inflight
        self._ledger = ledger
        self._state = state
        self._clock = clock
        self._hold = hold
        self._reachable: set[str] = set()
        self._restarts: dict[str, asyncio.Task[RestartAnswer]] = {}
        self._saved = state.ages()
        for _, harness in registry.attached():
            harness.age = self._saved.get(harness.name, harness.age)

    async def look(self) -> None:
        """Show the models that are loaded in them as instances."""
        for registered, harness in self._registry.attached():
            models = await harness.loaded()
            (self._reachable.discard if models is None else self._reachable.add)(harness.name)
            managed = [h.instance for h in self._instances if h.registered is registered]
            known = [i for i in managed if i.state is not InstanceState.FAILED]
            now = self._clock.unix()
            for instance in loaded_by_others(harness.name, models or {}, known, now):
                for failed in managed:
                    if failed not in known and failed.spec.model_id == instance.spec.model_id:
                        self._instances.drop(failed.id)
                self._hold(instance, registered).runner.begin()
        self._save()

    async def close(self) -> None:
        """Wait for no restart any longer; the service manager carries it out all the same."""
        tasks = tuple(self._restarts.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def shown(self) -> tuple[AttachedEngine, ...]:
        """GET /harnesses."""
        return tuple(
            AttachedEngine(
                harness=harness.name,
                url=harness.url,
                reachable=harness.name in self._reachable,
                restartable=harness.restartable,
                restarting=harness.name in self._restarts,
                cycles=harness.age.cycles,
            )
            for _, harness in self._registry.attached()
        )

    async def restart(self, name: str, request: RestartRequest) -> RestartAnswer:
        """Restart an engine, once however many ask; returns once it lists its models again.

        Raises:
            NotFound: there is no such harness.
            NotSupported: it is not attached, or its unit is not known.
            Conflict: something in it is being loaded or unloaded.
            StillBusy: it is computing, and may not be cut.
            LoadFailed: systemd refused, or the engine did not come back.
        """
        registered, harness = self._attached(name)
        if name not in self._restarts:
            if harness.age.cycles < request.min_cycles:
                return RestartAnswer(status="kept", models=_names(await harness.loaded() or {}))
            if not request.cut and await self._in_use(registered, harness):
                raise StillBusy(f"the engine at {harness.url} is computing")
        if name not in self._restarts:
            self._refuse_unsettled(registered)
            task = asyncio.create_task(self._restart(registered, harness), name=f"restart {name}")
            self._restarts[name] = task
            task.add_done_callback(lambda _: self._restarts.pop(name))
        return await asyncio.shield(self._restarts[name])

    def _attached(self, name: str) -> tuple[Registered, AttachedHarness]:
        if name not in self._registry.names:
            hints = tuple(f"did you mean {near!r}?" for near in nearest(name, self._registry.names))
            raise NotFound(f"this node has no harness {name!r}", hints=hints)
        registered = self._registry.get(name)
        harness = registered.harness
        if not isinstance(harness, AttachedHarness):
            raise NotSupported(
                f"harness {name!r} starts a process for each instance, there is nothing to restart",
                hints=("unload the instance and load it again",),
            )
        if not harness.restartable:
            raise NotSupported(
                f"nobody told this node how to restart the engine at {harness.url}",
                hints=(
                    f"set unit of harness {name!r} in neuron.toml",
                    "or restart the engine yourself: the node notices",
                ),
            )
        return registered, harness

    async def _in_use(self, registered: Registered, harness: AttachedHarness) -> bool:
        """Not every engine tells, so what this node relays to it counts too."""
        managed = [h.instance.id for h in self._instances if h.registered is registered]
        relayed = any(self._inflight.of(instance) for instance in managed)
        return relayed or bool(await harness.in_flight(harness.url))

    def _refuse_unsettled(self, registered: Registered) -> None:
        for managed in self._instances:
            instance = managed.instance
            if managed.registered is registered and instance.state in _UNSETTLED:
                raise Conflict(
                    f"instance {instance.id} in it is {instance.state}",
                    hints=("try again once that is over",),
                    details={"instance": instance.id, "state": str(instance.state)},
                )

    async def _restart(self, registered: Registered, harness: AttachedHarness) -> RestartAnswer:
        """Its instances load meanwhile, and are ready again with what came back."""
        begun = self._clock.monotonic()
        cycles = harness.age.cycles
        self._ledger.note("engine_restarting", harness=harness.name, cycles=cycles)
        ready = [
            managed
            for managed in self._instances
            if managed.registered is registered and managed.instance.state is InstanceState.READY
        ]
        stage = "waiting for its engine's restart"
        for managed in ready:
            self._ledger.change(advance(managed.instance, InstanceState.LOADING, stage=stage))
        await asyncio.gather(*(managed.runner.let_go() for managed in ready))
        try:
            models = await harness.restart()
        except CortexError as failed:
            self._ledger.note(
                "engine_restart_failed", logging.ERROR, harness=harness.name, reason=failed.message
            )
            raise
        finally:
            for managed in ready:
                if managed.instance.state is InstanceState.LOADING:
                    managed.runner.begin()
            self._save()
        seconds = round(self._clock.monotonic() - begun, 3)
        self._ledger.note("engine_restarted", harness=harness.name, seconds=seconds)
        return RestartAnswer(status="restarted", models=_names(models), seconds=seconds)

    def _save(self) -> None:
        ages = {harness.name: harness.age for _, harness in self._registry.attached()}
        if ages != self._saved:
            self._state.save_ages(ages)
            self._saved = ages


def _names(models: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(sorted(name for name, loaded in models.items() if loaded))
