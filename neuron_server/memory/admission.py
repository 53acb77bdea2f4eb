"""Admission of loads: their memory requests, and whether an existing instance already serves them.

Two numbers are kept apart: what the ledger reserves, which past loads teach, and what an engine may use, which
only the model config or the node's own estimate decides. If a measurement decided it, an engine that uses a little more
than it is given would be given more with every load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from cortex_common.errors import Conflict
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import InstanceState, LoadResponse, LoadSpec
from neuron_server.hardware.host import card_key
from neuron_server.harness.base import AttachedHarness, Harness, MemoryEstimate
from neuron_server.instances.state_machine import HOLDING_MEMORY, Instance, is_same_work
from neuron_server.memory.ledger import MemoryRequest
from neuron_server.state_store import PastLoad, StateDir

_JOINABLE = {InstanceState.LOADING, InstanceState.READY}


async def memory_requests(
    spec: LoadSpec, harness: Harness, devices: Sequence[Device], state: StateDir
) -> list[MemoryRequest]:
    """Return a memory request for each usable type of device, in the engine's order of preference.

    Args:
        spec: the load.
        harness: its engine.
        devices: the node's devices.
        state: holds what past loads took.
    """
    await harness.prepare()  # the engine may have been installed or upgraded since
    count = max(spec.tensor_parallel, len(spec.devices))
    if isinstance(harness, AttachedHarness) and spec.vram_mb is None:
        count = len(spec.devices)
    return [
        await _memory_request(spec, harness, kind, group, count, state)
        for kind, group in _device_groups(spec, harness, devices, count)
    ]


def _device_groups(
    spec: LoadSpec, harness: Harness, devices: Sequence[Device], count: int
) -> Iterator[tuple[DeviceKind, tuple[Device, ...]]]:
    """Yield the devices to choose from: those named in the spec, or else those of each kind and card.

    Devices of different cards are mixed if there are too few of one card.
    """
    supported = harness.capabilities.kinds
    named = [d for d in devices if not spec.devices or d.index in spec.devices]
    kinds = [kind for kind in supported if any(d.kind is kind for d in named)]
    for kind in kinds or supported[:1]:
        of_kind = tuple(d for d in named if d.kind is kind)
        if count > 1 and not spec.devices:  # a process can use one MIG device only
            of_kind = tuple(d for d in of_kind if not d.uuid.startswith("MIG-"))
        if spec.devices or not of_kind:
            yield kind, of_kind
            continue
        cards = [
            tuple(d for d in of_kind if d.name == card)
            for card in dict.fromkeys(d.name for d in of_kind)
        ]
        sufficient = [group for group in cards if len(group) >= count]
        for group in sufficient or [of_kind]:
            yield kind, group


async def _memory_request(
    spec: LoadSpec,
    harness: Harness,
    kind: DeviceKind,
    group: Sequence[Device],
    count: int,
    state: StateDir,
) -> MemoryRequest:
    past = state.past_load(spec, card_key(group)) or PastLoad()
    chosen = group if spec.devices else ()
    estimate = await harness.estimate(spec, kind, chosen)
    size_mb, learned = _reserved_mb(spec, kind, past, estimate, grows=harness.capabilities.grows)
    return MemoryRequest(
        size_mb,
        count,
        spec.devices or tuple(d.index for d in group),
        (kind,),
        host_mb=estimate.host_mb if estimate is not None else 0,
        budget_mb=_budget_mb(spec, past, estimate),
        learned=learned,
    )


def _reserved_mb(
    spec: LoadSpec,
    kind: DeviceKind,
    past: PastLoad,
    estimate: MemoryEstimate | None,
    *,
    grows: bool,
) -> tuple[int | None, bool]:
    """Return the MiB to reserve per device, None if unknown, and whether they were measured."""
    measured = spec.reserve_mb if spec.reserve_mb is not None else past.per_device_mb
    expected = spec.vram_mb
    if expected is None and estimate is not None:
        expected = estimate.device_mb
    size, learned = measured, measured is not None
    # Memory grows with use on a cpu device and in some engines, so what is expected can exceed the measurement.
    growing = grows or kind is DeviceKind.CPU
    if size is None or (growing and expected is not None and expected > size):
        size, learned = expected, False
    if size is not None and past.too_small_mb is not None and past.too_small_mb >= size:
        size, learned = past.too_small_mb + 1, True
    return size, learned


def _budget_mb(spec: LoadSpec, past: PastLoad, estimate: MemoryEstimate | None) -> int | None:
    """Return the MiB per device that an engine is configured to use: set or estimated, but never measured.

    An estimate with which the engine ran out of memory is raised. An engine of unknown size is given what it was given
    when it was measured; before that, its whole device.
    """
    if spec.vram_mb is not None:
        return spec.vram_mb
    if estimate is None:
        return past.budget_mb
    return max(estimate.device_mb, past.too_small_mb or 0)


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
        matches = unknown and is_same_work(_without_devices(instance.spec), _without_devices(spec))
    if not matches:
        return None
    ready = instance.state is InstanceState.READY
    return LoadResponse(status="loaded" if ready else "loading", instance_id=instance.id)


def _without_devices(spec: LoadSpec) -> LoadSpec:
    return spec.model_copy(update={"devices": ()})


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
