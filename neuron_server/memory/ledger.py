"""The memory ledger: which instance was granted how much memory on which device, and whether another load fits.

All sizes are MiB. Measured use and grants meet in one formula. Free memory is measured, so it already excludes what
engines have allocated; a grant counts only as far as its engine has not allocated it yet::

    available = free - headroom - sum over grants of max(0, granted - measured)

Devices that share the host's memory (a unified GPU and the cpu device) form one pool: a grant on one of them counts on
all of them, and the largest headroom of the pool applies to all.

Consequently, two concurrent loads can't be granted the same memory, an engine that allocates more than it was granted
is noticed immediately, and the memory of a stopped engine becomes available when the device reports it free.

A load of unknown size takes a whole device. A size that was learned can exceed what an empty device has available,
because the engine also used headroom; such a load needs an empty device, and is not refused for good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cortex_common.errors import BadRequest, DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId

WHOLE_DEVICE_SHARE = 0.9
"""Share of an empty device's memory that a load of unknown size needs."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device's memory as measured at one moment.

    Attributes:
        index: the device's index on the node.
        kind: the device's kind.
        used_mb: memory used by processes; memory that the driver reserves is neither used nor free.
        free_mb: unused memory.
        headroom_mb: memory that the operator wants kept free.
        usable: whether the device can be given work.
        pool_free_mb: free memory of the host, for a device that shares it; None for a device with its own memory.
    """

    index: int
    kind: DeviceKind
    used_mb: int
    free_mb: int
    headroom_mb: int
    usable: bool = True
    pool_free_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """The memory granted to one instance on one device.

    Attributes:
        instance: the instance.
        device: the device's index.
        granted_mb: size that was admitted.
        measured_mb: memory used by the instance's processes as of the same reading; None if the driver can't
            attribute memory to processes.
        unused_released: the instance has finished loading, so the part that it did not allocate is no longer reserved.
    """

    instance: InstanceId
    device: int
    granted_mb: int
    measured_mb: int | None = None
    unused_released: bool = False

    @property
    def reserved_mb(self) -> int:
        """MiB granted and not yet allocated."""
        if self.unused_released:
            return 0
        return max(0, self.granted_mb - (self.measured_mb or 0))

    @property
    def footprint_mb(self) -> int:
        """MiB allocated or reserved for the instance; the grant if use can't be measured."""
        if self.measured_mb is None:
            return self.granted_mb
        return self.measured_mb + self.reserved_mb


@dataclass(frozen=True, slots=True)
class DeviceAccount:
    """One device's memory with all grants applied.

    Attributes:
        memory: the measured device.
        reserved_mb: granted to instances and not yet allocated.
        other_mb: used by processes that are not this node's engines.
        available_mb: what a new load can be granted.
        empty_mb: what a load could be granted if no instance were on the device, or in its pool.
    """

    memory: DeviceMemory
    reserved_mb: int
    other_mb: int
    available_mb: int
    empty_mb: int


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """The memory that a load asks for.

    Attributes:
        per_device_mb: size on each device; None, for an unknown size, takes all available memory of an almost empty
            device.
        count: number of devices to spread over.
        devices: device indices chosen by the caller; empty lets the ledger choose.
        kinds: kinds of device that the engine supports, in order of preference.
        host_mb: MiB of the host's RAM in addition, checked if the cpu device is offered.
        budget_mb: MiB on each device that the engine will be configured to use; passed on to the reservation.
        learned: the size was measured, so it can include headroom; an empty device then suffices.
    """

    per_device_mb: int | None
    count: int
    devices: tuple[int, ...]
    kinds: tuple[DeviceKind, ...]
    host_mb: int = 0
    budget_mb: int | None = None
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was admitted for a load.

    Attributes:
        devices: indices of the devices.
        per_device_mb: MiB reserved on each of them.
        host_mb: MiB of the host's RAM reserved in addition.
        budget_mb: MiB on each device that the engine is configured to use; None if none.
    """

    devices: tuple[int, ...]
    per_device_mb: int
    host_mb: int = 0
    budget_mb: int | None = None


def compute_accounts(
    memory: Iterable[DeviceMemory], grants: Sequence[Grant]
) -> tuple[DeviceAccount, ...]:
    """Apply all grants to the measured devices."""
    memory = tuple(memory)
    pool = [device for device in memory if device.pool_free_mb is not None]
    pooled = {device.index for device in pool}
    in_pool = [grant for grant in grants if grant.device in pooled]
    pool_empty_mb = (
        min((device.pool_free_mb or 0 for device in pool), default=0)
        - max((device.headroom_mb for device in pool), default=0)
        + sum(grant.measured_mb or 0 for grant in in_pool)
    )
    pool_mb = pool_empty_mb - sum(g.reserved_mb + (g.measured_mb or 0) for g in in_pool)
    return tuple(
        _compute_account(
            device, [g for g in grants if g.device == device.index], pool_mb, pool_empty_mb
        )
        for device in memory
    )


def _compute_account(
    device: DeviceMemory, grants: Sequence[Grant], pool_mb: int, pool_empty_mb: int
) -> DeviceAccount:
    reserved = sum(grant.reserved_mb for grant in grants)
    ours = sum(grant.measured_mb or 0 for grant in grants)
    available = device.free_mb - device.headroom_mb - reserved
    empty = device.free_mb - device.headroom_mb + ours
    if device.pool_free_mb is not None:
        available, empty = min(available, pool_mb), min(empty, pool_empty_mb)
    return DeviceAccount(
        memory=device,
        reserved_mb=reserved,
        other_mb=max(0, device.used_mb - ours),
        available_mb=max(0, available) if device.usable else 0,
        empty_mb=max(0, empty) if device.usable else 0,
    )


def admit(
    request: MemoryRequest, memory: Sequence[DeviceMemory], grants: Sequence[Grant]
) -> Reservation:
    """Reserve memory for a load.

    Among the devices that fit, those with the least available memory are chosen, so that large blocks stay whole.

    Raises:
        BadRequest: the caller named a device that does not exist, or that the engine does not support.
        DoesNotFit: no choice of devices has the memory; details carry `needed_mb` and each device's numbers.
    """
    accounts = compute_accounts(memory, grants)
    candidates = _candidates(request, accounts)
    _check_host_memory(request, accounts)
    if request.per_device_mb is None:
        return _admit_whole(request, accounts, candidates)
    for kind in request.kinds:
        fitting = [
            account
            for account in candidates
            if account.memory.kind == kind and account.available_mb >= _needed_mb(request, account)
        ]
        fitting = _one_per_pool(sorted(fitting, key=lambda a: (a.available_mb, a.memory.index)))
        if len(fitting) >= request.count:
            chosen = fitting[: request.count]
            granted = min([request.per_device_mb, *(a.available_mb for a in chosen)])
            return _reservation(request, chosen, granted)
    raise _does_not_fit(request, accounts)


def _reservation(
    request: MemoryRequest, chosen: Sequence[DeviceAccount], granted_mb: int
) -> Reservation:
    devices = tuple(sorted(a.memory.index for a in chosen))
    return Reservation(devices, granted_mb, request.host_mb, request.budget_mb)


def _check_host_memory(request: MemoryRequest, accounts: Sequence[DeviceAccount]) -> None:
    """Check that the host's RAM, if it is offered, has what a load needs there.

    Raises:
        DoesNotFit: it has less.
    """
    host = next((a for a in accounts if a.memory.kind is DeviceKind.CPU), None)
    if host is not None and request.host_mb > host.available_mb:
        raise DoesNotFit(
            f"{request.host_mb} MiB of the host's RAM are needed for layers that stay there; "
            f"{host.available_mb} MiB are available",
            hints=("keep more layers on the GPU, or unload a model that uses RAM on this node",),
            details={"needed_host_mb": request.host_mb, "available_host_mb": host.available_mb},
        )


def _needed_mb(request: MemoryRequest, account: DeviceAccount) -> int:
    """Return the MiB that a load of known size needs on a device."""
    needed = request.per_device_mb or 0
    if not request.learned:
        return needed
    beyond_mb = needed - account.empty_mb
    return account.empty_mb if 0 < beyond_mb <= account.memory.headroom_mb else needed


def _admit_whole(
    request: MemoryRequest, accounts: Sequence[DeviceAccount], candidates: Sequence[DeviceAccount]
) -> Reservation:
    """Reserve all available memory of the emptiest devices, if they are almost empty."""
    needed = _whole_device_mb(request, candidates)
    emptiest = _one_per_pool(sorted(candidates, key=lambda a: -a.available_mb))
    chosen = emptiest[: request.count]
    granted = min((a.available_mb for a in chosen), default=0)
    if len(chosen) == request.count and granted >= max(1, needed or 0):
        return _reservation(request, chosen, granted)
    raise _does_not_fit(request, accounts, needed)


def _whole_device_mb(request: MemoryRequest, candidates: Sequence[DeviceAccount]) -> int | None:
    """Return the MiB that a load of unknown size needs on each device; None if there are too few devices."""
    empty = sorted((a.empty_mb for a in _one_per_pool(candidates)), reverse=True)
    if not request.count or len(empty) < request.count:
        return None
    return math.ceil(empty[request.count - 1] * WHOLE_DEVICE_SHARE)


def _one_per_pool(candidates: Iterable[DeviceAccount]) -> list[DeviceAccount]:
    """Keep at most one device of the memory pool, because its devices share the same memory."""
    kept: list[DeviceAccount] = []
    for account in candidates:
        pooled = account.memory.pool_free_mb is not None
        if not pooled or all(other.memory.pool_free_mb is None for other in kept):
            kept.append(account)
    return kept


def _candidates(request: MemoryRequest, accounts: Sequence[DeviceAccount]) -> list[DeviceAccount]:
    if request.devices:
        by_index = {account.memory.index: account for account in accounts}
        for index in request.devices:
            if index not in by_index:
                existing = ", ".join(map(str, by_index)) or "none"
                raise BadRequest(
                    f"this node has no device {index} (it has {existing})", param="devices"
                )
            if by_index[index].memory.kind not in request.kinds:
                kind = by_index[index].memory.kind
                raise BadRequest(
                    f"this engine does not support device {index} ({kind})", param="devices"
                )
        return [by_index[index] for index in request.devices if by_index[index].memory.usable]
    usable = [a for a in accounts if a.memory.usable and a.memory.kind in request.kinds]
    if request.per_device_mb is None:
        for kind in request.kinds:  # a load of unknown size is never spread over two kinds
            if of_kind := [a for a in usable if a.memory.kind == kind]:
                return of_kind
    return usable


def _does_not_fit(
    request: MemoryRequest, accounts: Sequence[DeviceAccount], whole_mb: int | None = None
) -> DoesNotFit:
    suitable = [a for a in accounts if a.memory.kind in request.kinds]
    where = "one device" if request.count == 1 else f"each of {request.count} devices"
    hints: list[str] = []
    if not suitable:
        kinds = " or ".join(request.kinds)
        message = f"this node has no device of kind {kinds}"
        if DeviceKind.CPU in request.kinds:
            hints.append("set offer = true in [cpu] of neuron.toml to offer the host's RAM")
    else:
        most = max(a.available_mb for a in suitable)
        size = (
            f"{request.per_device_mb} MiB"
            if request.per_device_mb is not None
            else "a load of unknown size, which needs an almost empty device,"
        )
        message = f"{size} on {where} does not fit: at most {most} MiB are available"
        hints.append("unload a model on this node, or use a smaller quantization or context")
    return DoesNotFit(
        message,
        hints=hints,
        details={
            "needed_mb": whole_mb if request.per_device_mb is None else request.per_device_mb,
            "devices": [
                {
                    "index": a.memory.index,
                    "free_mb": a.memory.free_mb,
                    "reserved_mb": a.reserved_mb,
                    "other_mb": a.other_mb,
                    "headroom_mb": a.memory.headroom_mb,
                    "available_mb": a.available_mb,
                }
                for a in accounts
            ],
        },
    )
