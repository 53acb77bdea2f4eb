"""The runtime: owns this node's instances and connects them with devices, harnesses and stored state.

All state changes happen on the event loop between two awaits, so no locks are needed: a condition that was checked
still holds when the change is made. Engines are driven by runners in tasks of their own (`instances.runner`), which
report here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from functools import partial

from cortex_common.clock import Clock
from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.certificates import Certificate
from cortex_common.schema.hardware import Discovery, Health, HostWarning
from cortex_common.schema.instances import (
    EndpointResponse,
    EngineFailures,
    InstanceId,
    InstanceState,
    LoadResponse,
    LoadSpec,
    ModelId,
    ModelInfo,
    NodeStatus,
    UnloadRequest,
    UnloadResponse,
)
from cortex_common.schema.usage import UsageReport
from cortex_common.supervision import BackgroundTasks
from neuron_server import views
from neuron_server.attached_engines import AttachedEngines
from neuron_server.diagnostics import EngineChecks, HardwareFaults
from neuron_server.directives import NodeDirectives
from neuron_server.engine_metrics import EngineReadings, parse_engine_metrics, reports_metrics
from neuron_server.event_log import ChangeCounter, EventLog
from neuron_server.hardware.host import Host, Reading
from neuron_server.harness.keys import EngineKeys
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.inflight import InflightCounts
from neuron_server.instances.registry import InstanceRegistry, ManagedInstance
from neuron_server.instances.state_machine import Instance
from neuron_server.loader import Loader
from neuron_server.memory.accounting import MemoryAccounting
from neuron_server.memory.instance_memory import InstanceMemory
from neuron_server.process.cgroups import Cgroups
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.exit_reason import ExitKind
from neuron_server.process.supervisor import Supervisor
from neuron_server.recovery import adopt_engines, engine_record, recorded_leaders
from neuron_server.state_store import StateDir
from neuron_server.unloader import Unloader
from neuron_server.usage import FailureStreak, FailureStreaks, LastUse

log = logging.getLogger(__name__)

READING_INTERVAL_S = 1.0
_STOP_TIMEOUT_S = 60.0
"""Seconds that engines have to end after their drain when the neuron stops."""

_READINGS, _INFLIGHT, _CHECKS = "readings", "requests in flight", "engine checks"
_PROGRAMS = "engine programs"
_FAILABLE = {InstanceState.LOADING, InstanceState.READY}
_INSPECTION_S = 5.0
"""Seconds that the start waits for the inspection of engines' programs, which continues in the background."""

_LAST_USE_SAVE_INTERVAL_S = 60.0
_READINGS_PER_ATTACHED_REFRESH = 5


class Runtime:
    """This node's instances, devices and memory accounting.

    Args:
        config: neuron.toml.
        host: the devices.
        registry: the harnesses.
        state: keeps records and logs on disk.
        clock: measures durations and provides timestamps.
        engine_host: address that engines listen on.
        cgroups: creates a cgroup per engine, if the neuron is allowed to create cgroups.
        token: what callers of the API must send.
        keys: the engines' API keys.

    Attributes:
        changes: incremented whenever the node's status changes.
        events: the event log.
        instances: the instances.
        last_use: when each instance was last used.
        inflight: the requests in flight of each instance.
        directives: the pins, cordons and times to live that this node keeps.
        attached: the attached engines.
        tasks: the background tasks.
        stopping_s: once the neuron is stopping, the seconds that relayed requests have left.
        certificates: returns the certificates that the API is served with.
    """

    def __init__(
        self,
        config: NeuronConfig,
        host: Host,
        registry: HarnessRegistry,
        state: StateDir,
        clock: Clock,
        engine_host: str,
        cgroups: Cgroups | None = None,
        *,
        token: str,
        keys: EngineKeys,
    ) -> None:
        self.config = config
        self.token = token
        self.keys = keys
        self.host = host
        self.registry = registry
        self.changes = ChangeCounter()
        self.stopping_s: float | None = None
        self.certificates: Callable[[], tuple[Certificate, ...]] = tuple
        self.events = EventLog(clock, self.changes)
        self.tasks = BackgroundTasks(clock, self.changes.increment)
        self.last_use = LastUse(clock)
        self.inflight = InflightCounts(self.last_use, clock)
        self._failure_streaks = FailureStreaks()
        self.directives = NodeDirectives(state, self.events, clock)
        self.instances = InstanceRegistry()
        self._state = state
        self._clock = clock
        self._supervisor = Supervisor(state.owner, cgroups)
        self._memory = MemoryAccounting(config, host)
        self._instance_memory = InstanceMemory(
            self._memory, self, self.instances, host, state, clock
        )
        self._loader = Loader(
            registry,
            self.instances,
            host,
            self._memory,
            self,
            state=state,
            supervisor=self._supervisor,
            clock=clock,
            engine_host=engine_host,
            keys=keys,
            remove=self._remove,
        )
        self.attached = AttachedEngines(
            registry, self.instances, self.inflight, self, state, clock, self._loader.manage
        )
        self._unloader = Unloader(
            self.inflight,
            self,
            clock,
            free_mb=self._memory.free_mb,
            before_stop=self._instance_memory.save_past_load,
            stopping=self._instance_memory.stopping,
            after_stop=lambda instance: self._remove(instance.id),
        )
        self._started_at = clock.monotonic()
        self._failures: Counter[tuple[ModelId, str]] = Counter()
        self._faults = HardwareFaults(self.events)
        self._engine_checks = EngineChecks(registry, host)

    # -- start and stop --------------------------------------------------------------------

    async def open(self) -> None:
        """Find the devices, adopt the previous neuron's engines, and start the background tasks."""
        await self.host.open()
        await self._inspect_programs()
        await self._memory.read({})
        self.events.record("engine_isolation", by=self._supervisor.isolation)
        leaders = recorded_leaders(self._state)
        adopted = self._adopt()
        self._state.remove_logs(keep=adopted)
        self.keys.remove_others(adopted)
        orphaned = [leader for instance, leader in leaders.items() if instance not in adopted]
        if orphans := await self._supervisor.kill_orphans(adopted, orphaned):
            self.events.record("orphans_killed", logging.WARNING, pids=list(orphans))
        await self.attached.refresh()
        await self.measure()
        on_change = self.changes.increment
        self.tasks.start(_READINGS, self._read_periodically)
        self.tasks.start(_INFLIGHT, partial(self.inflight.poll, self.instances, on_change))
        self.tasks.start(_CHECKS, partial(self._engine_checks.run, on_change))

    async def _inspect_programs(self) -> None:
        """Inspect the engines' programs; one that hangs holds up the start for a moment only."""
        inspected = asyncio.Event()

        async def inspect() -> None:
            await self.registry.prepare()
            inspected.set()
            self.changes.increment()

        self.tasks.start(_PROGRAMS, inspect)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(inspected.wait(), _INSPECTION_S)

    async def close(self) -> None:
        """Stop the engines, or leave them running if configured to."""
        await asyncio.gather(*map(self.tasks.stop, (_READINGS, _INFLIGHT, _CHECKS, _PROGRAMS)))
        await self.attached.close()
        keep = self.config.neuron.on_stop == "keep"
        for managed in self.instances:
            self._save_record(managed)
        detached = [m for m in self.instances if keep or m.instance.attached]
        await asyncio.gather(*(managed.runner.detach() for managed in detached))
        stopped = [managed for managed in self.instances if managed not in detached]
        await self._stop_all(stopped)
        await self.registry.close()
        await self.host.close()
        self._state.close()

    async def _stop_all(self, instances: Collection[ManagedInstance]) -> None:
        """Stop engines; whatever is left after a deadline is killed without a drain."""
        drain_s = self.config.neuron.drain_s
        kept = frozenset(str(m.instance.id) for m in self.instances if m not in instances)
        try:
            async with asyncio.timeout(drain_s + _STOP_TIMEOUT_S):
                outcomes = await asyncio.gather(
                    *(self._unloader.unload(managed, drain_s) for managed in instances),
                    return_exceptions=True,
                )
        except TimeoutError:
            self.events.record("engines_not_stopped", logging.ERROR)
        else:
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    log.error("engine_stop_failed", exc_info=outcome)
        if instances:
            await self._supervisor.kill_orphans(kept)

    def _adopt(self) -> frozenset[str]:
        adopted = list(
            adopt_engines(
                self._state, self.registry, self._supervisor, self.host.devices, self.events
            )
        )
        for instance, engine, record in adopted:
            self.last_use.restore(instance.id, record.last_used)
            self.keys.restore(instance.id, instance.port)
            entry = self.registry.get(instance.spec.harness)
            self._loader.manage(instance, entry).runner.start(engine)
        return frozenset(str(instance.id) for instance, *_ in adopted)

    # -- the API's requests ----------------------------------------------------------------

    async def load(self, spec: LoadSpec, known: Collection[str] | None = None) -> LoadResponse:
        """Admit an instance and start it; returns before it is ready.

        Args:
            spec: the load.
            known: the model's other instances that the caller knows of: see `admission.join_existing`.

        Raises:
            BadRequest: the harness, the weights or a device does not exist.
            Conflict: the instance id is in use with another spec, or is ending.
            DoesNotFit: the ledger refuses the load.
        """
        return await self._loader.load(spec, known)

    async def unload(self, request: UnloadRequest) -> UnloadResponse:
        """Drain and stop instances; returns once their memory is measured free.

        Raises:
            ModelNotFound: no instance matches.
            InstanceBusy: requests are still in flight and must not be cut.
        """
        managed = self.instances.find(request.model_id, request.instance_id)
        drain_s, force = request.drain_seconds, request.force
        await asyncio.gather(*(self._unloader.unload(m, drain_s, force=force) for m in managed))
        return UnloadResponse()

    def forget_size(self, model_id: str) -> bool:
        """Forget what loads of a model took; return whether anything was known."""
        forgotten = self._state.forget_past_loads(model_id)
        self.events.record("sizes_forgotten", model=model_id)
        return forgotten

    def endpoint(self, model_id: str, url_of: Callable[[Instance], str]) -> EndpointResponse:
        """Return the endpoint of a model's least busy ready instance.

        Raises:
            ModelNotFound: the node has no instance of the model.
            Unavailable: no instance is ready.
        """
        ready = self.instances.ready_instances(model_id)
        best = min(ready, key=lambda i: (self.inflight.count(i.id), i.started_at))
        url = url_of(best)
        return EndpointResponse(url=url, instance_id=best.id, api_key=self._key_at(best, url))

    def engine_url(self, instance: Instance) -> str:
        """Return the base URL of an engine as this host reaches it."""
        return self.instances[instance.id].runner.url(instance.port)

    def _key_at(self, instance: Instance, url: str) -> str | None:
        """Return the key that requests to a URL of an instance need; the relay adds it itself."""
        return self.keys.get(instance.id) if url == self.engine_url(instance) else None

    def models(self, url_of: Callable[[Instance], str]) -> tuple[ModelInfo, ...]:
        """Return the body of GET /models."""
        return tuple(
            views.model_info(
                managed.instance,
                url_of(managed.instance),
                self._memory.footprint_mb(managed.instance),
                self.inflight.count(managed.instance.id),
                self.last_use.idle_s(managed.instance.id),
                self._clock.unix(),
                self._key_at(managed.instance, url_of(managed.instance)),
            )
            for managed in self.instances
        )

    def discovery(self) -> Discovery:
        """Return the body of GET /discovery."""
        warnings = (
            *self.registry.warnings(),
            *self._engine_checks.warnings,
            *views.lost_device_warnings(self.health(), self._memory.devices),
            *self._faults.warnings(),
            *self._state.warnings(),
            *(HostWarning(code="task_failed", message=text) for text in self.tasks.warnings()),
        )
        discovery = self.host.discovery(self.registry.info(), warnings)
        devices = tuple(views.with_settings(self.config, device) for device in discovery.devices)
        return discovery.model_copy(
            update={"certificates": self.certificates(), "devices": devices}
        )

    def health(self) -> Health:
        """Return the body of GET /health: the latest reading with the memory accounts."""
        uptime_s = self._clock.monotonic() - self._started_at
        return self._memory.health(uptime_s, self.instances.snapshots)

    def status(self, url_of: Callable[[Instance], str]) -> NodeStatus:
        """Return a `status` message of GET /events."""
        return NodeStatus(
            health=self.health(),
            models=self.models(url_of),
            attached=self.attached.views(),
            discovery=views.fingerprint(self.discovery()),
            stopping_s=self.stopping_s,
            failures=tuple(EngineFailures(m, k, n) for (m, k), n in self._failures.items()),
            node_id=self._state.node_id,
            directives=self.directives.all(),
        )

    @property
    def state_write_failures(self) -> int:
        """Writes to the state directory that failed."""
        return self._state.write_failures

    def record_usage(self, report: UsageReport) -> None:
        """Take a gateway's report about the use of instances."""
        existing = {instance.id for instance in self.instances.snapshots}
        for usage in report.instances:
            if usage.instance_id in existing:
                self.inflight.record_report(report.gateway, usage)
                self._failure_streaks.record(usage)

    async def engine_metrics(self) -> list[EngineReadings]:
        """Return what the engines of the ready instances report about themselves, as far as they answer."""
        ready = [
            managed
            for managed in self.instances
            if managed.instance.state in {InstanceState.READY, InstanceState.DRAINING}
            and not managed.instance.attached
            and reports_metrics(managed.entry.harness.capabilities.engine)
        ]
        texts = await asyncio.gather(
            *(self.registry.read_metrics(self.engine_url(m.instance)) for m in ready)
        )
        return [
            EngineReadings(
                managed.instance.id,
                ModelId(managed.instance.spec.model_id),
                parse_engine_metrics(managed.entry.harness.capabilities.engine, text),
            )
            for managed, text in zip(ready, texts, strict=True)
            if text is not None
        ]

    def engine_log(self, instance: Instance) -> EngineLog:
        """Return the log of an instance's engine."""
        return self._state.log(instance.id, instance.spec)

    # -- the runners' requests: the RunnerHost protocol -------------------------------------

    def current(self, instance: InstanceId) -> Instance:
        """Return the current snapshot of an instance."""
        return self.instances[instance].instance

    def record_event(self, event: str, level: int = logging.INFO, **fields: object) -> None:
        """Add an entry to the event log."""
        self.events.record(event, level, **fields)

    def count_failure(self, instance: InstanceId, kind: str) -> None:
        """Count a failure of an instance's engine: see `EngineFailures`."""
        self._failures[ModelId(self.instances[instance].instance.spec.model_id), kind] += 1

    def update(self, instance: Instance) -> None:
        """Replace the snapshot of an instance, save it if needed, and notify subscribers."""
        managed = self.instances[instance.id]
        before, managed.instance = managed.instance, instance
        if instance.state is InstanceState.FAILED:
            self._state.remove_record(instance.id)
        else:
            self._save_record(managed)
        if instance.state is InstanceState.READY and before.state is InstanceState.LOADING:
            self._instance_memory.save_past_load(instance)
            if self.last_use.idle_s(instance.id) is None:
                self.last_use.record(instance.id)  # idle from here on
        elif instance.failure == ExitKind.OUT_OF_MEMORY and instance.state is not before.state:
            self._instance_memory.save_out_of_memory(before)
        self.changes.increment()

    def pick_port(self, instance: InstanceId) -> int:
        """Return another free port of the range of an instance's harness."""
        entry = self.instances[instance].entry
        return self._loader.free_port(entry, f"{instance} {uuid.uuid4()}")

    def held_mb(self, instance: InstanceId) -> int:
        """Return the MiB per device that an instance holds or has reserved."""
        return self._instance_memory.held_mb(instance)

    async def readmit(self, instance: InstanceId) -> None:
        """Reserve memory for the restart of an instance's engine.

        Raises:
            DoesNotFit: another process has taken the memory meanwhile.
        """
        await self._instance_memory.readmit(instance)

    def loading(self, instance: InstanceId) -> AbstractAsyncContextManager[None]:
        """Return a context in which an instance's engine is started and loads."""
        return self._instance_memory.loading(instance)

    async def measure(self) -> None:
        """Read the devices now and apply the measurements."""
        reading = await self._memory.read(self.instances.process_finders)
        self._faults.update(reading, self.instances.snapshots)
        self._fail_on_gone_devices(reading)
        for managed in self.instances:
            managed.instance = self._memory.with_measurements(managed.instance)
        self.changes.increment()

    def _fail_on_gone_devices(self, reading: Reading) -> None:
        """Take the instances of devices that are gone out of service; their engines can't work any more."""
        gone = {
            device.index: sample.reason or "lost"
            for device, sample in zip(reading.devices, reading.samples, strict=True)
            if sample.gone
        }
        if not gone:
            return
        for managed in self.instances:
            index = next((i for i in managed.instance.devices if i in gone), None)
            if index is not None and managed.instance.state in _FAILABLE:
                managed.runner.fail(f"GPU {index} is lost: {gone[index]}", "gpu_lost")

    async def requests_in_flight(self, instance: InstanceId) -> int:
        """Return the requests in flight of an instance, as far as anyone reports them."""
        return await self.inflight.refresh(self.instances[instance])

    def failure_streak(self, instance: InstanceId) -> FailureStreak:
        """Return the requests that an instance has failed since it last answered one."""
        return self._failure_streaks.get(instance)

    def forget_failures(self, instance: InstanceId) -> None:
        """Start counting the failed requests of an instance again."""
        self._failure_streaks.forget(instance)

    # -- internals ---------------------------------------------------------------------------

    def _remove(self, instance: InstanceId) -> None:
        self.instances.remove(instance)
        self.inflight.forget(instance)
        self._failure_streaks.forget(instance)
        self._state.remove_record(instance)
        self.keys.remove(instance)
        self._state.log(instance).remove()

    def _save_record(self, managed: ManagedInstance) -> None:
        if managed.runner.engine is None:
            return
        last_used = self.last_use.last_used(managed.instance.id)
        record = engine_record(
            managed.instance, managed.runner.engine, self.host.devices, last_used
        )
        if record != managed.saved:
            managed.saved = record if self._state.save_record(record) else None

    def _last_use_is_stale(self, managed: ManagedInstance) -> bool:
        saved = 0.0 if managed.saved is None else managed.saved.last_used
        return self.last_use.last_used(managed.instance.id) - saved > _LAST_USE_SAVE_INTERVAL_S

    async def _read_periodically(self) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(READING_INTERVAL_S)
            try:
                await self.measure()
                if count % _READINGS_PER_ATTACHED_REFRESH == 0:
                    await self.attached.refresh()
                for managed in self.instances:
                    self._state.log(managed.instance.id).trim()
                    if managed.saved is None or self._last_use_is_stale(managed):
                        self._save_record(managed)
            except Exception as error:  # noqa: BLE001 - without readings no load would ever be admitted again
                self.tasks.record_failure(_READINGS, error)
