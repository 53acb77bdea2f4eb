"""Finding the engines that an earlier neuron of this state directory left running."""

from __future__ import annotations

from collections.abc import Iterator

from neuron_server.core.instance import Instance
from neuron_server.harness.process import EngineProcess
from neuron_server.harness.registry import Registry
from neuron_server.harness.supervisor import Head, Supervisor
from neuron_server.journal import Journal
from neuron_server.processes import boot_id
from neuron_server.records import EngineRecord, StateDir


def left_running(
    state: StateDir, registry: Registry, supervisor: Supervisor, devices: int, journal: Journal
) -> Iterator[tuple[Instance, EngineProcess]]:
    """Each recorded engine that still lives, as an instance to be probed; the other records are removed.

    A pid alone proves nothing: boot, start time and the mark in its environment must be the recorded ones.

    Args:
        state: the records.
        registry: an engine whose harness is not configured any more is not taken over.
        supervisor: takes them over.
        devices: how many the node has now.
        journal: told what became of each.
    """
    boot = boot_id()
    for record in state.records():
        usable = record.spec.harness in registry.names and max(record.devices, default=0) < devices
        engine = None
        if record.boot == boot and usable:
            engine = supervisor.adopt(record.pid, record.started_ticks, record.instance_id)
        if engine is None:
            state.forget(record.instance_id)
            journal.note("engine_was_gone", instance=record.instance_id)
            continue
        journal.note("engine_adopted", instance=record.instance_id, pid=record.pid)
        yield _instance(record, registry), engine


def heads(state: StateDir) -> dict[str, Head]:
    """The heads of the engines that the neuron before started in this boot, by instance; many may have ended."""
    boot = boot_id()
    return {
        record.instance_id: Head(record.pid, record.started_ticks)
        for record in state.records()
        if record.boot == boot
    }


def record_of(instance: Instance, engine: EngineProcess) -> EngineRecord:
    """What the next neuron must know of a running engine."""
    return EngineRecord(
        instance_id=instance.id,
        spec=instance.spec,
        devices=instance.devices,
        promised_mb=instance.promised_mb,
        port=instance.port,
        pid=engine.pid,
        started_ticks=engine.started_ticks,
        boot=boot_id(),
        started_at=instance.started_at,
        load_seconds=instance.load_seconds,
    )


def _instance(record: EngineRecord, registry: Registry) -> Instance:
    return Instance(
        id=record.instance_id,
        spec=record.spec,
        devices=record.devices,
        promised_mb=record.promised_mb,
        port=record.port,
        started_at=record.started_at,
        load_seconds=record.load_seconds,
        served_as=registry.get(record.spec.harness).harness.served_as(record.spec),
        stage="adopting",
    )
