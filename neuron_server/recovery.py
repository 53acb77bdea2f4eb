"""Finding the engines that an earlier neuron of this state directory left running."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cortex_common.schema.hardware import Device
from neuron_server.event_log import EventLog
from neuron_server.harness.registry import Registry
from neuron_server.instances.state_machine import Instance
from neuron_server.process.engine_process import EngineProcess
from neuron_server.process.process_table import boot_id
from neuron_server.process.supervisor import Head, Supervisor
from neuron_server.state_store import EngineRecord, StateDir


def left_running(
    state: StateDir,
    registry: Registry,
    supervisor: Supervisor,
    devices: Sequence[Device],
    events: EventLog,
) -> Iterator[tuple[Instance, EngineProcess]]:
    """Each recorded engine that still lives and may go on, as an instance to be probed; other records are removed.

    A pid alone proves nothing: boot, start time and the mark in its environment must be the recorded ones.

    Args:
        state: the records.
        registry: an engine whose harness is not configured any more is not taken over.
        supervisor: takes them over.
        devices: of the node, now.
        events: told what became of each.
    """
    boot = boot_id()
    for record in state.records():
        here = _devices_now(record, devices)
        engine = None
        if record.spec.harness not in registry.names:
            why = f"this neuron has no harness {record.spec.harness!r} any more"
        elif here is None:
            why = "this host has not all of its devices any more"
        else:
            why = "it has ended"
            if record.boot == boot:
                engine = supervisor.adopt(record.pid, record.started_ticks, record.instance_id)
        if engine is None or here is None:
            state.forget(record.instance_id)
            events.note("engine_not_adopted", instance=record.instance_id, reason=why)
            continue
        events.note("engine_adopted", instance=record.instance_id, pid=record.pid)
        yield _instance(record, here, registry), engine


def heads(state: StateDir) -> dict[str, Head]:
    """The heads of the engines that the neuron before started in this boot, by instance; many may have ended."""
    boot = boot_id()
    return {
        record.instance_id: Head(record.pid, record.started_ticks)
        for record in state.records()
        if record.boot == boot
    }


def record_of(instance: Instance, engine: EngineProcess, devices: Sequence[Device]) -> EngineRecord:
    """What the next neuron must know of a running engine; `devices` are those of the node."""
    return EngineRecord(
        instance_id=instance.id,
        spec=instance.spec,
        devices=instance.devices,
        granted_mb=instance.granted_mb,
        port=instance.port,
        pid=engine.pid,
        started_ticks=engine.started_ticks,
        boot=boot_id(),
        started_at=instance.started_at,
        load_seconds=instance.load_seconds,
        uuids=tuple(d.uuid for i in instance.devices for d in devices if d.index == i),
    )


def _devices_now(record: EngineRecord, devices: Sequence[Device]) -> tuple[int, ...] | None:
    """The numbers that its devices have now; None where one is not there any more."""
    if not record.uuids:
        return record.devices if max(record.devices, default=0) < len(devices) else None
    numbers = {device.uuid: device.index for device in devices}
    found = tuple(numbers[uuid] for uuid in record.uuids if uuid in numbers)
    return found if len(found) == len(record.uuids) else None


def _instance(record: EngineRecord, devices: tuple[int, ...], registry: Registry) -> Instance:
    return Instance(
        id=record.instance_id,
        spec=record.spec,
        devices=devices,
        granted_mb=record.granted_mb,
        port=record.port,
        started_at=record.started_at,
        load_seconds=record.load_seconds,
        served_as=registry.get(record.spec.harness).harness.served_as(record.spec),
        stage="adopting",
    )
