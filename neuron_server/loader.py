"""Loading: joins a load to an existing instance, or admits and starts a new one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from functools import partial

from cortex_common.clock import Clock
from cortex_common.schema.instances import InstanceId, InstanceState, LoadResponse, LoadSpec
from neuron_server.hardware.host import Host
from neuron_server.harness.base import AttachedHarness
from neuron_server.harness.keys import EngineKeys
from neuron_server.harness.registry import HarnessRegistry, RegistryEntry
from neuron_server.instances.registry import InstanceRegistry, ManagedInstance
from neuron_server.instances.runner_factory import create_runner
from neuron_server.instances.runner_protocol import RunnerHost
from neuron_server.instances.state_machine import Instance
from neuron_server.memory.accounting import MemoryAccounting
from neuron_server.memory.admission import join_existing, memory_requests, reject_second_parallel
from neuron_server.memory.ledger import Reservation
from neuron_server.process.blocking import run_blocking
from neuron_server.process.ports import free_port
from neuron_server.process.supervisor import Supervisor
from neuron_server.state_store import StateDir
from neuron_server.weights.files import FILES_TIMEOUT_S, stalled_files_error


class Loader:
    """Admits loads, and adds instances together with their runners.

    Args:
        registry: the harnesses.
        instances: the node's instances.
        devices: the node's devices.
        memory: admits loads.
        host: the runtime, for the runners.
        state: holds what past loads took, and the engines' logs.
        supervisor: starts engines.
        clock: measures durations and provides timestamps.
        engine_host: address that engines listen on.
        keys: the engines' API keys.
        remove: removes a failed instance.
    """

    def __init__(
        self,
        registry: HarnessRegistry,
        instances: InstanceRegistry,
        devices: Host,
        memory: MemoryAccounting,
        host: RunnerHost,
        *,
        state: StateDir,
        supervisor: Supervisor,
        clock: Clock,
        engine_host: str,
        keys: EngineKeys,
        remove: Callable[[InstanceId], None],
    ) -> None:
        self._registry = registry
        self._instances = instances
        self._devices = devices
        self._memory = memory
        self._host = host
        self._state = state
        self._supervisor = supervisor
        self._clock = clock
        self._engine_host = engine_host
        self._keys = keys
        self._remove = remove

    async def load(self, spec: LoadSpec, known: Collection[str] | None = None) -> LoadResponse:
        """Admit an instance and start it; returns before it is ready.

        Args:
            spec: the load.
            known: see `admission.join_existing`.

        Raises:
            BadRequest: the harness, the weights or a device does not exist.
            Conflict: the instance id is in use with another spec, or is ending.
            DoesNotFit: the ledger refuses the load.
        """
        entry = self._registry.get(spec.harness)
        if answer := self._join(spec, known):
            return answer
        weights_mb = await _look_for_weights(spec, entry)
        requests = await memory_requests(spec, entry.harness, self._devices.devices, self._state)
        await (
            self._host.measure()
        )  # other processes may have taken or freed memory since the last reading
        if answer := self._join(spec, known):
            return answer
        reservation = self._memory.admit(requests, self._instances.snapshots)
        return self._start(spec, entry, reservation, weights_mb)

    def manage(
        self, instance: Instance, entry: RegistryEntry, weights_mb: int | None = None
    ) -> ManagedInstance:
        """Add an instance with its runner, not started yet; `weights_mb` are read by its load, if that is known.

        Raises:
            BadRequest: the harness rejects the spec; nothing is added.
            NotSupported: the engine is not installed; nothing is added.
        """
        runner = create_runner(
            instance,
            entry,
            self._devices.devices,
            engine_host=self._engine_host,
            keys=self._keys,
            state=self._state,
            supervisor=self._supervisor,
            host=self._host,
            clock=self._clock,
            weights_mb=weights_mb,
        )
        managed = ManagedInstance(instance, runner, entry)
        self._instances.add(managed)
        return managed

    def free_port(self, entry: RegistryEntry, seed: str) -> int:
        """Return a free port of a harness's range; `seed` varies the choice.

        Raises:
            Unavailable: the whole range is in use.
        """
        ports = entry.settings.port_range
        return free_port(ports, self._engine_host, self._instances.ports, seed)

    def _join(self, spec: LoadSpec, known: Collection[str] | None) -> LoadResponse | None:
        """Return the answer of an instance that already serves a load; remove failed ones for another attempt."""
        for instance in self._instances.matching(spec):
            if instance.state is InstanceState.FAILED:
                self._remove(instance.id)
            elif answer := join_existing(spec, instance, known):
                return answer
        return None

    def _start(
        self,
        spec: LoadSpec,
        entry: RegistryEntry,
        reservation: Reservation,
        weights_mb: int | None,
    ) -> LoadResponse:
        instance_id = InstanceId(spec.instance_id or f"i-{uuid.uuid4().hex[:12]}")
        harness = entry.harness
        if harness.capabilities.exclusive_when_parallel and len(reservation.devices) > 1:
            reject_second_parallel(spec.harness, self._instances.snapshots)
        past = self._state.past_load(spec, self._memory.card_key(reservation.devices))
        attached = isinstance(harness, AttachedHarness)
        instance = Instance(
            id=instance_id,
            spec=spec,
            devices=reservation.devices,
            granted_mb=reservation.per_device_mb,
            budget_mb=_budget_mb(reservation),
            host_mb=reservation.host_mb,
            grows=harness.capabilities.grows,
            port=0 if attached else self.free_port(entry, str(instance_id)),
            started_at=self._clock.unix(),
            expected_load_s=past.seconds if past else None,
            attached=attached,
            served_as=harness.served_as(spec),
        )
        managed = self.manage(instance, entry, weights_mb)
        self._state.log(instance_id).remove()
        self._host.record_event(
            "load_admitted",
            instance=instance_id,
            model=spec.model_id,
            devices=list(reservation.devices),
            granted_mb=reservation.per_device_mb,
            budget_mb=instance.budget_mb,
        )
        managed.runner.start()
        return LoadResponse(status="loading", instance_id=instance_id)


async def _look_for_weights(spec: LoadSpec, entry: RegistryEntry) -> int | None:
    """Return the MiB of weights, or None if they are not on this host's disk.

    This is the first access to the files of a load. It happens aside, so that a share that stalls holds up only this
    load.
    """
    try:
        return await run_blocking(partial(entry.harness.weights_mb, spec), FILES_TIMEOUT_S)
    except TimeoutError as error:
        raise stalled_files_error(spec) from error


def _budget_mb(reservation: Reservation) -> int | None:
    """Return the MiB that an engine is configured to use: all that it was granted if its size is unknown."""
    if not reservation.devices:
        return None
    return reservation.per_device_mb if reservation.budget_mb is None else reservation.budget_mb
