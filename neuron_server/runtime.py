"""The owner of this node's instances.

All state changes happen on the event loop between two awaits, so there is nothing to lock: what was checked is
still true when it is changed. Engines live in tasks of their own (`runner.EngineLife`) and report here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from cortex_common.clock import Clock
from cortex_common.config.neuron import NeuronConfig
from cortex_common.errors import DoesNotFit, StillBusy
from cortex_common.net.tls import Certificate
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import (
    EndpointAnswer,
    EngineFailures,
    InstanceId,
    InstanceState,
    LoadAnswer,
    LoadSpec,
    ModelId,
    ModelInfo,
    NodeStatus,
    UnloadAnswer,
    UnloadRequest,
)
from neuron_server import views
from neuron_server.admission import joined, needs_of, refuse_second_parallel
from neuron_server.diagnostics import EngineChecks, HardwareFaults
from neuron_server.event_log import ChangeCounter, EventLog
from neuron_server.hardware.host import Host
from neuron_server.harness.base import AttachedHarness
from neuron_server.harness.registry import Registered, Registry
from neuron_server.inflight import InflightCounts
from neuron_server.instances.attached_engines import AttachedEngines
from neuron_server.instances.registry import InstanceRegistry, ManagedInstance
from neuron_server.instances.runner import until_freed, until_idle
from neuron_server.instances.runner_factory import runner_for
from neuron_server.instances.state_machine import Instance, advance
from neuron_server.ledger import Reservation
from neuron_server.memory_accounting import MemoryAccounting
from neuron_server.process.cgroups import Cgroups
from neuron_server.process.engine_log import EngineLog
from neuron_server.process.ports import free_port
from neuron_server.process.supervisor import Supervisor
from neuron_server.recovery import heads, left_running, record_of
from neuron_server.state_store import PastLoad, StateDir

log = logging.getLogger(__name__)

READING_EVERY_S = 1.0
_ATTACHED_EVERY = 5


class Runtime:
    """This node's instances, devices and books.

    Args:
        config: neuron.toml.
        host: the devices.
        registry: the harnesses.
        state: where records and logs are kept.
        clock: for times and durations.
        engine_host: address that engines listen on.
        cgroups: where engines get one each, where the neuron may make some.

    Attributes:
        holdings: the instances.
        occupancy: how busy they are.
        attached: the engines that someone else runs.
        certificates: that this node is asked with.
    """

    def __init__(
        self,
        config: NeuronConfig,
        host: Host,
        registry: Registry,
        state: StateDir,
        clock: Clock,
        engine_host: str,
        cgroups: Cgroups | None = None,
    ) -> None:
        self.config = config
        self.host = host
        self.registry = registry
        self.changes = ChangeCounter()
        self.stopping_s: float | None = None
        self.certificates: Callable[[], tuple[Certificate, ...]] = tuple
        self.events = EventLog(clock, self.changes)
        self.inflight = InflightCounts()
        self._state = state
        self._supervisor = Supervisor(state.owner, cgroups)
        self._clock = clock
        self._engine_host = engine_host
        self.instances = InstanceRegistry()
        self.attached = AttachedEngines(
            registry, self.instances, self.inflight, self, state, clock, hold=self._hold
        )
        self._books = MemoryAccounting(config, host)
        self._began = clock.monotonic()
        self._failures: Counter[tuple[ModelId, str]] = Counter()
        self._faults = HardwareFaults(self.events)
        self._fitness = EngineChecks(registry, host)
        self._readers: tuple[asyncio.Task[None], ...] = ()

    # -- opening and closing ---------------------------------------------------------------

    async def open(self) -> None:
        """Find the devices, adopt the engines of the last neuron, begin to read."""
        await self.host.open()
        await self.registry.prepare()
        await self._books.read({})
        self.events.note("engines_fenced", by=self._supervisor.fence)
        left = heads(self._state)
        adopted = self._adopt()
        self._state.remove_logs(keep=adopted)
        gone = [head for instance, head in left.items() if instance not in adopted]
        if orphans := await self._supervisor.kill_orphans(adopted, gone):
            self.events.note("orphans_killed", logging.WARNING, pids=list(orphans))
        await self.attached.look()
        await self.measure()
        self._readers = (
            asyncio.create_task(self._keep_reading(), name="readings"),
            asyncio.create_task(
                self.inflight.watch(self.instances, self.changes.publish), name="inflight"
            ),
            asyncio.create_task(self._fitness.watch(self.changes.publish), name="fitness"),
        )

    async def close(self) -> None:
        """Stop or keep the engines, as the configuration says."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self.attached.close()
        keep = self.config.neuron.on_stop == "keep"
        kept = [h for h in self.instances if keep or h.instance.attached]
        await asyncio.gather(*(managed.runner.let_go() for managed in kept))
        ended = [h for h in self.instances if h not in kept]
        await asyncio.gather(
            *(self._stop(managed, self.config.neuron.drain_s) for managed in ended)
        )
        await self.registry.close()
        await self.host.close()
        self._state.close()

    def _adopt(self) -> frozenset[str]:
        devices = self.host.devices
        found = list(
            left_running(self._state, self.registry, self._supervisor, devices, self.events)
        )
        for instance, engine in found:
            self._hold(instance, self.registry.get(instance.spec.harness)).runner.begin(engine)
        return frozenset(str(instance.id) for instance, _ in found)

    # -- what callers ask ------------------------------------------------------------------

    async def load(self, spec: LoadSpec, known: Collection[str] | None = None) -> LoadAnswer:
        """Admit an instance and start it; returns before it is ready.

        Args:
            spec: which.
            known: as for `admission.joined`.

        Raises:
            BadRequest: no such harness, weights or device.
            Conflict: the instance id runs with another spec, or is just ending.
            DoesNotFit: the ledger refuses.
        """
        registered = self.registry.get(spec.harness)
        if answer := self._join(spec, known):
            return answer
        here = {d.kind for d in self.host.devices if not spec.devices or d.index in spec.devices}
        needs = await needs_of(spec, registered.harness, here, self._state)
        if answer := self._join(spec, known):
            return answer
        try:
            reservation = self._books.admit(needs, self.instances.instances)
        except DoesNotFit:
            await self.measure()  # an engine may have ended since the last reading
            if answer := self._join(spec, known):
                return answer
            reservation = self._books.admit(needs, self.instances.instances)
        return self._begin(spec, registered, reservation)

    async def unload(self, request: UnloadRequest) -> UnloadAnswer:
        """Drain and end instances; returns once their memory is measured free.

        Raises:
            ModelNotFound: nothing of that name is here.
            StillBusy: one is in use for longer, and may not be cut.
        """
        managed = self.instances.of_model(request.model_id, request.instance_id)
        drain_s, cut = request.drain_seconds, request.cut
        await asyncio.gather(*(self._stop(h, drain_s, cut=cut) for h in managed))
        return UnloadAnswer()

    def endpoint(self, model_id: str, url_of: Callable[[Instance], str]) -> EndpointAnswer:
        """Where a model's requests go: its ready instance with the least to do.

        Raises:
            ModelNotFound: nothing of that name is here.
            Unavailable: it is here, but not ready.
        """
        ready = self.instances.ready(model_id)
        best = min(ready, key=lambda i: (self.inflight.of(i.id), i.started_at))
        return EndpointAnswer(url=url_of(best), instance_id=best.id)

    def engine_url(self, instance: Instance) -> str:
        """Base URL of an engine as this host reaches it."""
        return self.instances[instance.id].runner.url(instance.port)

    def models(self, url_of: Callable[[Instance], str]) -> tuple[ModelInfo, ...]:
        """GET /models."""
        return tuple(
            views.model_info(
                managed.instance,
                url_of(managed.instance),
                self._books.counted_mb(managed.instance),
                self.inflight.of(managed.instance.id),
                self._clock.unix(),
            )
            for managed in self.instances
        )

    def discovery(self) -> Discovery:
        """GET /discovery."""
        lost = views.lost(self.health(), self._books.devices)
        warnings = (
            *self.registry.missing(),
            *self._fitness.warnings,
            *lost,
            *self._faults.warnings(),
            *self._state.warnings(),
        )
        found = self.host.discovery(self.registry.info(), warnings)
        return found.model_copy(update={"certificates": self.certificates()})

    def health(self) -> Health:
        """GET /health: the latest reading, with the books."""
        return self._books.health(self._clock.monotonic() - self._began, self.instances.instances)

    def status(self, url_of: Callable[[Instance], str]) -> NodeStatus:
        """One message of GET /events."""
        return NodeStatus(
            health=self.health(),
            models=self.models(url_of),
            attached=self.attached.shown(),
            discovery=views.fingerprint(self.discovery()),
            stopping_s=self.stopping_s,
            failures=tuple(EngineFailures(m, k, n) for (m, k), n in self._failures.items()),
        )

    def log_of(self, instance: Instance) -> EngineLog:
        """An instance's output."""
        return self._state.log(instance.id)

    # -- what lives ask: the Ledger protocol ----------------------------------------------

    def now(self, instance: InstanceId) -> Instance:
        """See `runner.Ledger.now`."""
        return self.instances[instance].instance

    def note(self, event: str, level: int = logging.INFO, **facts: object) -> None:
        """See `runner.Ledger.note`."""
        self.events.note(event, level, **facts)

    def failed(self, instance: InstanceId, kind: str) -> None:
        """See `runner.Ledger.failed`."""
        self._failures[ModelId(self.instances[instance].instance.spec.model_id), kind] += 1

    def change(self, instance: Instance) -> None:
        """See `runner.Ledger.change`."""
        managed = self.instances[instance.id]
        before, managed.instance = managed.instance, instance
        if instance.state is InstanceState.FAILED:
            self._state.forget(instance.id)
        else:
            self._save(managed)
        if instance.state is InstanceState.READY and before.state is InstanceState.LOADING:
            self._remember(instance)
        self.changes.publish()

    def another_port(self, instance: InstanceId) -> int:
        """See `runner.Ledger.another_port`."""
        return self._port(self.instances[instance].registered, f"{instance} {uuid.uuid4()}")

    async def measure(self) -> None:
        """See `runner.Ledger.measure`."""
        reading = await self._books.read(self.instances.trees)
        self._faults.enter(reading, self.instances.instances)
        for managed in self.instances:
            managed.instance = self._books.measured(managed.instance)
        self.changes.publish()

    # -- inside -----------------------------------------------------------------------------

    def _join(self, spec: LoadSpec, known: Collection[str] | None) -> LoadAnswer | None:
        """The answer for a load that is under way or done; what failed before is cleared away for a new try."""
        for instance in self.instances.related(spec):
            if instance.state is InstanceState.FAILED:
                self._drop(instance.id)
            elif answer := joined(spec, instance, known):
                return answer
        return None

    def _begin(
        self, spec: LoadSpec, registered: Registered, reservation: Reservation
    ) -> LoadAnswer:
        instance_id = InstanceId(spec.instance_id or f"i-{uuid.uuid4().hex[:12]}")
        if registered.harness.capabilities.exclusive_when_parallel and len(reservation.devices) > 1:
            refuse_second_parallel(spec.harness, self.instances.instances)
        harness = registered.harness
        kind = self._books.kind_of(reservation.devices[0]) if reservation.devices else None
        past = self._state.past_load(spec, kind) if kind else None
        attached = isinstance(harness, AttachedHarness)
        instance = Instance(
            id=instance_id,
            spec=spec,
            devices=reservation.devices,
            granted_mb=reservation.per_device_mb,
            port=0 if attached else self._port(registered, str(instance_id)),
            started_at=self._clock.unix(),
            expected_load_s=past.seconds if past else None,
            attached=attached,
            served_as=harness.served_as(spec),
        )
        managed = self._hold(instance, registered)
        self._state.log(instance_id).remove()
        self.events.note(
            "load_admitted",
            instance=instance_id,
            model=spec.model_id,
            devices=list(reservation.devices),
            granted_mb=reservation.per_device_mb,
        )
        managed.runner.begin()
        self.changes.publish()
        return LoadAnswer(status="loading", instance_id=instance_id)

    def _hold(self, instance: Instance, registered: Registered) -> ManagedInstance:
        """Keep an instance; what its harness refuses is the caller's answer, and nothing is kept then."""
        runner = runner_for(
            instance,
            registered,
            self.host.devices,
            engine_host=self._engine_host,
            state=self._state,
            supervisor=self._supervisor,
            ledger=self,
            clock=self._clock,
        )
        managed = ManagedInstance(instance, runner, registered)
        self.instances.add(managed)
        return managed

    async def _stop(self, managed: ManagedInstance, drain_s: float, *, cut: bool = True) -> None:
        """Stop once, however many ask."""
        if managed.stopping is None:
            managed.stopping = asyncio.create_task(self._stop_now(managed, drain_s, cut=cut))
        if not await asyncio.shield(managed.stopping):
            raise StillBusy.after(managed.instance.id, drain_s)

    async def _stop_now(self, managed: ManagedInstance, drain_s: float, *, cut: bool) -> bool:
        """Whether it was stopped: one that is in use and may not be cut takes requests again."""
        serving = managed.instance.state is InstanceState.READY
        if serving and (drain_s > 0 or not cut):
            self.change(advance(managed.instance, InstanceState.DRAINING))
            idle = await until_idle(self._clock, drain_s, lambda: self.inflight.ask(managed))
            if not idle and not cut and managed.instance.state is InstanceState.DRAINING:
                managed.stopping = None
                self.change(advance(managed.instance, InstanceState.READY))
                return False
        self.change(advance(managed.instance, InstanceState.STOPPING))
        self.events.note(
            "unloading", instance=managed.instance.id, model=managed.instance.spec.model_id
        )
        self._remember(managed.instance)
        await managed.runner.end()
        if any(managed.instance.measured_mb):
            await until_freed(self._clock, lambda: self._free_now(managed.instance.devices))
        else:
            await self.measure()
        self._drop(managed.instance.id)
        self.events.note(
            "unloaded", instance=managed.instance.id, model=managed.instance.spec.model_id
        )
        self.changes.publish()
        return True

    async def _free_now(self, devices: Sequence[int]) -> list[int]:
        await self.measure()
        return self._books.free_mb(devices)

    def _drop(self, instance: InstanceId) -> None:
        self.instances.drop(instance)
        self._state.forget(instance)
        self._state.log(instance).remove()

    def _save(self, managed: ManagedInstance) -> None:
        if managed.runner.engine is None:
            return
        record = record_of(managed.instance, managed.runner.engine, self.host.devices)
        if record != managed.saved:
            managed.saved = record if self._state.save(record) else None

    def _remember(self, instance: Instance) -> None:
        if instance.load_seconds is not None and instance.devices and not instance.attached:
            load = PastLoad(seconds=instance.load_seconds, per_device_mb=instance.peak_mb or None)
            self._state.remember_load(instance.spec, self._books.kind_of(instance.devices[0]), load)

    def _port(self, registered: Registered, seed: str) -> int:
        ports = registered.entry.port_range
        return free_port(ports, self._engine_host, self.instances.ports, seed)

    async def _keep_reading(self) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(READING_EVERY_S)
            try:
                await self.measure()
                if count % _ATTACHED_EVERY == 0:
                    await self.attached.look()
                for managed in self.instances:
                    self._state.log(managed.instance.id).trim()
                    if managed.saved is None:
                        self._save(managed)
            except Exception:
                # The next one may succeed, and without readings nothing would be admitted any more.
                log.exception("reading_failed")
