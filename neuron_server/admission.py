"""What a load needs, as far as anybody knows before it: asked for, learned, or estimated."""

from __future__ import annotations

from collections.abc import Collection

from cortex_common.errors import Conflict
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceState, LoadAnswer, LoadSpec
from neuron_server.harness.base import AttachedHarness, Harness
from neuron_server.instances.state_machine import OCCUPIED, Instance, same_work
from neuron_server.ledger import Need
from neuron_server.state_store import StateDir

_JOINABLE = {InstanceState.LOADING, InstanceState.READY}


async def needs_of(
    spec: LoadSpec, harness: Harness, here: Collection[DeviceKind], state: StateDir
) -> list[Need]:
    """What a load needs on each kind of device that its engine runs on and the node has; preferred kinds first.

    Args:
        spec: the load.
        harness: its engine.
        here: kinds of the devices that may be chosen: the named ones, or all of the node.
        state: what past loads took.
    """
    await harness.prepare()  # the engine may have been installed or upgraded since
    count = max(spec.tensor_parallel, len(spec.devices))
    if isinstance(harness, AttachedHarness) and spec.vram_mb is None:
        count = len(spec.devices)
    wanted = harness.capabilities.kinds
    kinds = [kind for kind in wanted if kind in here] or list(wanted[:1])
    return [
        Need(await _size(spec, harness, kind, state), count, spec.devices, (kind,))
        for kind in kinds
    ]


async def _size(spec: LoadSpec, harness: Harness, kind: DeviceKind, state: StateDir) -> int | None:
    """MiB on each device; None when nobody knows."""
    if spec.vram_mb is not None:
        return spec.vram_mb
    past = state.past_load(spec, kind)
    learned = None if past is None else past.per_device_mb
    if learned is not None and kind is not DeviceKind.CPU:
        return learned
    # Resident memory grows with use, so on a cpu an estimate may know better than a measurement.
    estimate = await harness.estimate_mb(spec, kind)
    return max((size for size in (estimate, learned) if size is not None), default=None)


def joined(
    spec: LoadSpec, instance: Instance, known: Collection[str] | None = None
) -> LoadAnswer | None:
    """The answer for a load that an instance serves already; None when it is a load of its own.

    Args:
        spec: the load.
        instance: one of its model or of its instance id.
        known: the instances that the load comes on top of, where it says so. Whoever began with another was asked by
            somebody else, who may have measured another size, and chosen other devices.

    Raises:
        Conflict: the load names this instance, which is something else or just ending.
    """
    fits = instance.state in _JOINABLE and same_work(instance.spec, spec)
    if spec.instance_id == instance.id and not fits:
        doing = "with another spec" if instance.state in _JOINABLE else "on its way out"
        raise Conflict(
            f"instance {instance.id} is {instance.state} {doing}",
            hints=("choose another instance_id, or unload it first",),
            details={"state": str(instance.state)},
        )
    if spec.instance_id not in {None, instance.id}:
        news = known is not None and instance.id not in known and instance.state in _JOINABLE
        fits = news and same_work(_free(instance.spec), _free(spec))
    if not fits:
        return None
    ready = instance.state is InstanceState.READY
    return LoadAnswer(status="loaded" if ready else "loading", instance_id=instance.id)


def _free(spec: LoadSpec) -> LoadSpec:
    return spec.model_copy(update={"devices": (), "vram_mb": None})


def refuse_second_parallel(harness: str, instances: Collection[Instance]) -> None:
    """Some engines can't be spread over several devices twice on one host.

    Raises:
        Conflict: one is there already.
    """
    for other in instances:
        if other.spec.harness == harness and len(other.devices) > 1 and other.state in OCCUPIED:
            raise Conflict(
                f"{harness} can't run two models over several devices on one host; {other.id} does already",
                details={"instance_id": other.id},
            )
