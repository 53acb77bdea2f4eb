"""Recovery after a restart: adopting the engines that the previous neuron of a state directory left running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortex_common.schema.hardware import Device
from neuron_server.event_log import EventLog
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.instances.state_machine import Instance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.process_table import boot_id
from neuron_server.process.supervisor import GroupLeader, Supervisor
from neuron_server.state_store import EngineRecord, StateDir


def adopt_engines(
    state: StateDir,
    registry: HarnessRegistry,
    supervisor: Supervisor,
    devices: Sequence[Device],
    events: EventLog,
) -> Iterator[tuple[Instance, EngineProcess, EngineRecord]]:
    """Yield each recorded engine that still runs and can be adopted, with its record; remove the other records.

    A pid alone identifies nothing: boot id, start time and the marker in the environment must match the record.

    Args:
        state: holds the records.
        registry: an engine is adopted only if its harness is still configured.
        supervisor: adopts the processes.
        devices: the node's current devices.
        events: receives the outcome for each record.
    """
    boot = boot_id()
    for record in state.records():
        indices = _current_indices(record, devices)
        engine = None
        if record.spec.harness not in registry.names:
            reason = f"harness {record.spec.harness!r} is no longer configured"
        elif indices is None:
            reason = "a device of the instance is missing"
        else:
            reason = "the process has ended"
            if record.boot == boot:
                engine = supervisor.adopt(record.pid, record.started_ticks, record.instance_id)
        if engine is None or indices is None:
            state.remove_record(record.instance_id)
            events.record("engine_adoption_skipped", instance=record.instance_id, reason=reason)
            continue
        events.record("engine_adopted", instance=record.instance_id, pid=record.pid)
        yield _restored_instance(record, indices, registry), engine, record


def recorded_leaders(state: StateDir) -> dict[str, GroupLeader]:
    """Return the group leaders of engines started in this boot, by instance; they may have ended."""
    boot = boot_id()
    return {
        record.instance_id: GroupLeader(record.pid, record.started_ticks)
        for record in state.records()
        if record.boot == boot
    }


def engine_record(
    instance: Instance, engine: EngineProcess, devices: Sequence[Device], last_used: float
) -> EngineRecord:
    """Return what the next neuron needs to adopt a running engine.

    Args:
        instance: its instance.
        engine: its processes.
        devices: the devices of the node.
        last_used: Unix seconds at which it was last used.
    """
    return EngineRecord(
        instance_id=instance.id,
        spec=instance.spec,
        devices=instance.devices,
        granted_mb=instance.granted_mb,
        budget_mb=instance.budget_mb,
        host_mb=instance.host_mb,
        attributed_mb=instance.attributed_mb,
        port=instance.port,
        pid=engine.pid,
        started_ticks=engine.started_ticks,
        boot=boot_id(),
        started_at=instance.started_at,
        load_seconds=instance.load_seconds,
        uuids=tuple(d.uuid for i in instance.devices for d in devices if d.index == i),
        last_used=last_used,
    )


def _current_indices(record: EngineRecord, devices: Sequence[Device]) -> tuple[int, ...] | None:
    """Return the current indices of a record's devices; None if one of them is missing."""
    if not record.uuids:
        return record.devices if max(record.devices, default=0) < len(devices) else None
    by_uuid = {device.uuid: device.index for device in devices}
    indices = tuple(by_uuid[uuid] for uuid in record.uuids if uuid in by_uuid)
    return indices if len(indices) == len(record.uuids) else None


def _restored_instance(
    record: EngineRecord, devices: tuple[int, ...], registry: HarnessRegistry
) -> Instance:
    return Instance(
        id=record.instance_id,
        spec=record.spec,
        devices=devices,
        granted_mb=record.granted_mb,
        budget_mb=record.budget_mb,
        host_mb=record.host_mb,
        attributed_mb=record.attributed_mb,
        grows=registry.get(record.spec.harness).harness.capabilities.grows,
        port=record.port,
        started_at=record.started_at,
        load_seconds=record.load_seconds,
        served_as=registry.get(record.spec.harness).harness.served_as(record.spec),
        stage="adopting",
    )
