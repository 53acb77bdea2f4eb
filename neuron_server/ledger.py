"""Who has been promised how much memory on which device, and whether one more load fits. All numbers are MiB.

Measured use and promises meet in one formula. What is free is measured, so it already lacks what engines have
taken; a promise counts only as far as its engine has not taken it yet::

    available = free - headroom - sum over claims of max(0, promised - measured)

Devices that share the host's memory (a unified GPU and the cpu device) are accounts of one pool: a promise on any of
them counts on all, and what one of them is to keep free, all keep free.

Hence two loads that start together can't be promised the same memory, an engine that took more than promised is
seen at once, and the memory of an ended engine comes back when the device says so and not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cortex_common.errors import BadRequest, DoesNotFit
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import InstanceId


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device as measured at one moment.

    Attributes:
        used_mb: somebody uses it now; what the driver keeps for itself is neither used nor free.
        free_mb: nobody uses it now.
        headroom_mb: the operator wants it kept free.
        usable: the device can be given work.
        pool_free_mb: what is free of the host's memory, for a device that shares it; None for one with its own.
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
    """One instance's part of one device.

    Attributes:
        promised_mb: admitted for it.
        measured_mb: used by its processes, in the same moment as the books; None when the device can't tell.
        settled: it is loaded, so that what it did not take is not kept for it any longer.
    """

    instance: InstanceId
    device: int
    granted_mb: int
    measured_mb: int | None = None
    settled: bool = False

    @property
    def reserved_mb(self) -> int:
        """Promised and not taken yet."""
        if self.settled:
            return 0
        return max(0, self.granted_mb - (self.measured_mb or 0))

    @property
    def counted_mb(self) -> int:
        """What the device lacks because of this instance: taken, or kept for it; the promise where nobody can tell."""
        if self.measured_mb is None:
            return self.granted_mb
        return self.measured_mb + self.reserved_mb


@dataclass(frozen=True, slots=True)
class DeviceAccount:
    """What one device's books say once the shares are entered."""

    memory: DeviceMemory
    reserved_mb: int
    other_mb: int
    available_mb: int


@dataclass(frozen=True, slots=True)
class Need:
    """What a load asks for.

    Attributes:
        per_device_mb: on each device; None takes all that is available on the emptiest, because nobody knows.
        count: devices to spread over.
        devices: the caller's choice of devices; empty lets the ledger choose.
        kinds: kinds of device that the engine runs on, the preferred first.
    """

    per_device_mb: int | None
    count: int
    devices: tuple[int, ...]
    kinds: tuple[DeviceKind, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was admitted."""

    devices: tuple[int, ...]
    per_device_mb: int


def accounts(memory: Iterable[DeviceMemory], grants: Sequence[Grant]) -> tuple[DeviceAccount, ...]:
    """Enter all shares into the books."""
    memory = tuple(memory)
    pool = [device for device in memory if device.pool_free_mb is not None]
    pooled = {device.index for device in pool}
    pool_mb = (
        min((device.pool_free_mb or 0 for device in pool), default=0)
        - max((device.headroom_mb for device in pool), default=0)
        - sum(grant.reserved_mb for grant in grants if grant.device in pooled)
    )
    return tuple(
        _account(device, [s for s in grants if s.device == device.index], pool_mb)
        for device in memory
    )


def _account(device: DeviceMemory, grants: Sequence[Grant], pool_mb: int) -> DeviceAccount:
    reserved = sum(grant.reserved_mb for grant in grants)
    ours = sum(grant.measured_mb or 0 for grant in grants)
    available = device.free_mb - device.headroom_mb - reserved
    if device.pool_free_mb is not None:
        available = min(available, pool_mb)
    return DeviceAccount(
        memory=device,
        reserved_mb=reserved,
        other_mb=max(0, device.used_mb - ours),
        available_mb=max(0, available) if device.usable else 0,
    )


def admit(need: Need, memory: Sequence[DeviceMemory], grants: Sequence[Grant]) -> Reservation:
    """Promise memory to a load.

    Among devices that fit, those with the least to spare are taken, so that large blocks stay whole.

    Raises:
        BadRequest: the caller named a device that is not there, or that the engine can't use.
        DoesNotFit: no choice of devices has the memory; details carry `needed_mb` and each device's numbers.
    """
    all_accounts = accounts(memory, grants)
    candidates = _candidates(need, all_accounts)
    if need.per_device_mb is None:
        chosen = _apart(sorted(candidates, key=lambda a: -a.available_mb))[: need.count]
        least = min((a.available_mb for a in chosen), default=0)
        if len(chosen) == need.count and least > 0:
            return Reservation(tuple(sorted(a.memory.index for a in chosen)), least)
        raise _refusal(need, all_accounts)
    for kind in need.kinds:
        fitting = [
            account
            for account in candidates
            if account.memory.kind == kind and account.available_mb >= need.per_device_mb
        ]
        fitting = _apart(sorted(fitting, key=lambda a: (a.available_mb, a.memory.index)))
        if len(fitting) >= need.count:
            chosen_indices = sorted(a.memory.index for a in fitting[: need.count])
            return Reservation(tuple(chosen_indices), need.per_device_mb)
    raise _refusal(need, all_accounts)


def _apart(candidates: Iterable[DeviceAccount]) -> list[DeviceAccount]:
    """At most one device of the pool: what two of them have is there once only."""
    found: list[DeviceAccount] = []
    for account in candidates:
        pooled = account.memory.pool_free_mb is not None
        if not pooled or all(other.memory.pool_free_mb is None for other in found):
            found.append(account)
    return found


def _candidates(need: Need, all_accounts: Sequence[DeviceAccount]) -> list[DeviceAccount]:
    if need.devices:
        by_index = {account.memory.index: account for account in all_accounts}
        for index in need.devices:
            if index not in by_index:
                known = ", ".join(map(str, by_index)) or "none"
                raise BadRequest(
                    f"this node has no device {index} (it has {known})", param="devices"
                )
            if by_index[index].memory.kind not in need.kinds:
                kind = by_index[index].memory.kind
                raise BadRequest(
                    f"this engine does not run on device {index} ({kind})", param="devices"
                )
        return [by_index[index] for index in need.devices if by_index[index].memory.usable]
    usable = [a for a in all_accounts if a.memory.usable and a.memory.kind in need.kinds]
    if need.per_device_mb is None:
        for kind in need.kinds:  # mixing kinds is no way to find room for the unknown
            if of_kind := [a for a in usable if a.memory.kind == kind]:
                return of_kind
    return usable


def _refusal(need: Need, all_accounts: Sequence[DeviceAccount]) -> DoesNotFit:
    suitable = [a for a in all_accounts if a.memory.kind in need.kinds]
    where = "one device" if need.count == 1 else f"each of {need.count} devices"
    hints: list[str] = []
    if not suitable:
        wanted = " or ".join(need.kinds)
        message = f"this node has no device of kind {wanted}"
        if DeviceKind.CPU in need.kinds:
            hints.append("set offer = true in [cpu] of neuron.toml to offer the host's RAM")
    else:
        most = max(a.available_mb for a in suitable)
        asked = f"{need.per_device_mb} MiB" if need.per_device_mb is not None else "an unknown size"
        message = f"{asked} on {where} does not fit: the most that is available is {most} MiB"
        hints.append("unload a model on this node, or use a smaller quantisation or context")
    return DoesNotFit(
        message,
        hints=hints,
        details={
            "needed_mb": need.per_device_mb,
            "devices": [
                {
                    "index": a.memory.index,
                    "free_mb": a.memory.free_mb,
                    "reserved_mb": a.reserved_mb,
                    "other_mb": a.other_mb,
                    "headroom_mb": a.memory.headroom_mb,
                    "available_mb": a.available_mb,
                }
                for a in all_accounts
            ],
        },
    )
