"""Admission of loads: their memory requests, and whether an existing instance already serves them."""

from __future__ import annotations

from collections.abc import Collection

from cortex_common.errors import Conflict
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, LoadResponse, LoadSpec
from neuron_server.harness.base import AttachedHarness, Harness
from neuron_server.instances.state_machine import HOLDING_MEMORY, Instance, is_same_work
from neuron_server.ledger import MemoryRequest
from neuron_server.state_store import StateDir

_JOINABLE = {InstanceState.LOADING, InstanceState.READY}


async def memory_requests(
    spec: LoadSpec, harness: Harness, available_kinds: Collection[DeviceKind], state: StateDir
) -> list[MemoryRequest]:
    """Return a memory request for each usable kind of device, in the engine's order of preference.

    Args:
        spec: the load.
        harness: its engine.
        available_kinds: kinds of the devices that can be chosen: those named in the spec, or all of the node.
        state: holds what past loads took.
    """
    await harness.prepare()  # the engine may have been installed or upgraded since
    count = max(spec.tensor_parallel, len(spec.devices))
    if isinstance(harness, AttachedHarness) and spec.vram_mb is None:
        count = len(spec.devices)
    supported = harness.capabilities.kinds
    kinds = [kind for kind in supported if kind in available_kinds] or list(supported[:1])
    return [
        MemoryRequest(await _size_mb(spec, harness, kind, state), count, spec.devices, (kind,))
        for kind in kinds
    ]


async def _size_mb(
    spec: LoadSpec, harness: Harness, kind: DeviceKind, state: StateDir
) -> int | None:
    """Return MiB per device: configured, measured in a past load, or estimated; None if unknown."""
    if spec.vram_mb is not None:
        return spec.vram_mb
    past = state.past_load(spec, kind)
    measured = None if past is None else past.per_device_mb
    if measured is not None and kind is not DeviceKind.CPU:
        return measured
    # Resident memory grows with use, so on a cpu device an estimate can exceed the measurement.
    estimate = await harness.estimate_mb(spec, kind)
    return max((size for size in (estimate, measured) if size is not None), default=None)


def join_existing(
    spec: LoadSpec, instance: Instance, known: Collection[str] | None = None
) -> LoadResponse | None:
    """Return the answer for a load that an instance already serves; None if it needs an instance of its own.

    Args:
        spec: the load.
        instance: an instance of the same model or with the same instance id.
        known: the model's other instances that the caller knows of, if it asks for one more. An instance that it does
            not know was started by another caller, possibly with another measured size or other devices.

    Raises:
        Conflict: the load names this instance, which has another spec or is ending.
    """
    matches = instance.state in _JOINABLE and is_same_work(instance.spec, spec)
    if spec.instance_id == instance.id and not matches:
        status = "with a different spec" if instance.state in _JOINABLE else "and about to end"
        raise Conflict(
            f"instance {instance.id} is {instance.state} {status}",
            hints=("choose another instance_id, or unload it first",),
            details={"state": str(instance.state)},
        )
    if spec.instance_id not in {None, instance.id}:
        unknown = known is not None and instance.id not in known and instance.state in _JOINABLE
        matches = unknown and is_same_work(
            _without_placement(instance.spec), _without_placement(spec)
        )
    if not matches:
        return None
    ready = instance.state is InstanceState.READY
    return LoadResponse(status="loaded" if ready else "loading", instance_id=instance.id)


def _without_placement(spec: LoadSpec) -> LoadSpec:
    return spec.model_copy(update={"devices": (), "vram_mb": None})


def reject_second_parallel(harness: str, instances: Collection[Instance]) -> None:
    """Reject a second multi-device instance of an engine that supports only one per host.

    Raises:
        Conflict: such an instance already exists.
    """
    for other in instances:
        parallel = other.spec.harness == harness and len(other.devices) > 1
        if parallel and other.state in HOLDING_MEMORY:
            raise Conflict(
                f"{harness} can't run two multi-device models on one host; {other.id} is already one",
                details={"instance_id": other.id},
            )
