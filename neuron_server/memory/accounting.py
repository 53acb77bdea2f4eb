"""Memory accounting of a node: the latest reading of its devices, joined with its instances' grants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from cortex_common.config.neuron import NeuronConfig
from cortex_common.errors import DoesNotFit
from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, Health
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.hardware.host import Host, Reading, card_key
from neuron_server.hardware.sample import DeviceSample
from neuron_server.instances.state_machine import HOLDING_MEMORY, Instance
from neuron_server.memory.health import headroom_mb, health
from neuron_server.memory.ledger import (
    DeviceMemory,
    Grant,
    MemoryRequest,
    Reservation,
    admit,
    compute_accounts,
)
from neuron_server.process.process_table import ProcessFinder


class MemoryAccounting:
    """Joins measured and granted memory, both as of the same reading.

    Args:
        config: sets the headroom of each device.
        host: the devices.
    """

    def __init__(self, config: NeuronConfig, host: Host) -> None:
        self._config = config
        self._host = host
        self._reading = Reading(0.0, (), (), {})

    async def read(self, finders: Mapping[InstanceId, ProcessFinder]) -> Reading:
        """Read the devices now; `finders` find the processes of each instance's engine."""
        self._reading = await self._host.read(finders)
        return self._reading

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices as of the latest reading."""
        return self._reading.devices

    def admit(
        self, requests: Sequence[MemoryRequest], instances: Iterable[Instance]
    ) -> Reservation:
        """Reserve memory for the first request that fits.

        Raises:
            BadRequest: see `ledger.admit`.
            DoesNotFit: none fits; the error is that of the first request.
        """
        grants = self._all_grants(instances)
        first_error: DoesNotFit | None = None
        for request in requests:
            try:
                return admit(request, self._device_memory(), grants)
            except DoesNotFit as error:
                first_error = first_error or error
        assert first_error is not None, "there is always a request"
        raise first_error

    def grants(self, instance: Instance) -> list[Grant]:
        """Return an instance's grants, one per device.

        On a cpu device, and with an engine that grows, the whole grant stays reserved for as long as the instance
        exists: it is a budget, and memory grows with use. Otherwise an engine allocates all its GPU memory while it
        loads, so the unused part is released afterwards. This holds even where the driver can't attribute memory to
        processes (in some containers, or for an attached engine), because free memory is measured.
        """
        if instance.state not in HOLDING_MEMORY:
            return []
        grants = []
        for index in instance.devices:
            on_cpu = self.device_kind(index) is DeviceKind.CPU
            keeps = (on_cpu or instance.grows) and not instance.attached
            released = not keeps and instance.state is not InstanceState.LOADING
            measured = self._measured_mb(instance, index)
            granted = instance.granted_mb if instance.held_mb is None else instance.held_mb
            grants.append(Grant(instance.id, index, granted, measured, released))
        return grants

    def held_mb(self, instance: Instance) -> int:
        """Return the MiB per device that an instance holds or has reserved."""
        grants = self.grants(instance)
        return max((g.reserved_mb + (g.measured_mb or 0) for g in grants), default=0)

    def readmit(self, instance: Instance, size_mb: int, instances: Iterable[Instance]) -> int:
        """Reserve memory for the restart of an instance's engine on its devices; return the MiB per device.

        Raises:
            DoesNotFit: the memory has been taken meanwhile.
        """
        if not instance.devices:
            return instance.granted_mb
        request = MemoryRequest(
            size_mb,
            len(instance.devices),
            instance.devices,
            (self.device_kind(instance.devices[0]),),
            learned=True,
        )
        others = [other for other in instances if other.id != instance.id]
        return self.admit([request], others).per_device_mb

    def empty_mb(self, devices: Iterable[int], instances: Iterable[Instance]) -> int:
        """Return the MiB that a load could be granted on each of some devices if they had no instance."""
        accounts = compute_accounts(self._device_memory(), self._all_grants(instances))
        return min((accounts[index].empty_mb for index in devices), default=0)

    def _all_grants(self, instances: Iterable[Instance]) -> list[Grant]:
        """Return the grants of all instances, those of the host's RAM included."""
        grants: list[Grant] = []
        cpu = next((d.index for d in self.devices if d.kind is DeviceKind.CPU), None)
        for instance in instances:
            own = self.grants(instance)
            if own and instance.host_mb and cpu is not None and cpu not in instance.devices:
                measured = self._reading.samples[cpu].by_instance.get(instance.id)
                own.append(Grant(instance.id, cpu, instance.host_mb, measured))
            grants += own
        return grants

    def _measured_mb(self, instance: Instance, index: int) -> int | None:
        """Return the MiB of an instance on one of its devices; None if they could not be measured."""
        measured = self._reading.samples[index].by_instance.get(instance.id)
        if measured is None and instance.attributed_mb:
            return instance.attributed_mb[instance.devices.index(index)]
        return measured

    def footprint_mb(self, instance: Instance) -> tuple[int, ...]:
        """Return the MiB that unloading an instance would free on each of its devices."""
        return tuple(grant.footprint_mb for grant in self.grants(instance))

    def with_measurements(self, instance: Instance) -> Instance:
        """Return the instance with the latest reading's measurements."""
        measured = [self._measured_mb(instance, index) for index in instance.devices]
        sizes = tuple(size for size in measured if size is not None)
        if len(sizes) < len(measured):
            return instance
        peak = max((instance.peak_mb, *sizes))
        return dataclasses.replace(instance, measured_mb=sizes, peak_mb=peak)

    def used_mb(self, devices: Iterable[int]) -> tuple[int, ...]:
        """Return the MiB in use on each given device."""
        return tuple(self._reading.samples[index].used_mb for index in devices)

    def attribute(self, instance: Instance, before: Sequence[int]) -> Instance:
        """Attribute the rise of its devices' use since `before` (MiB on each) to an instance, if all of them rose."""
        now = self.used_mb(instance.devices)
        rises = tuple(used - base for used, base in zip(now, before, strict=True))
        return (
            dataclasses.replace(instance, attributed_mb=rises)
            if all(rise > 0 for rise in rises)
            else instance
        )

    def is_attributed(self, instance: Instance) -> bool:
        """Return whether the driver attributed memory to an instance on all its devices."""
        samples = self._reading.samples
        return all(instance.id in samples[index].by_instance for index in instance.devices)

    def free_mb(self, devices: Iterable[int]) -> list[int]:
        """Return the free MiB of each given device."""
        return [self._reading.samples[index].free_mb for index in devices]

    def is_cordoned(self, device: Device) -> bool:
        """Return whether neuron.toml excludes a device from new instances."""
        return any(e.cordon for e in self._config.devices if e.uuid == device.uuid)

    def device_kind(self, index: int) -> DeviceKind:
        """Return the kind of a device."""
        return self.devices[index].kind

    def card_key(self, devices: Iterable[int]) -> str:
        """Return the key under which sizes on some devices are learned."""
        return card_key([self.devices[index] for index in devices])

    def health(self, uptime_s: float, instances: Iterable[Instance]) -> Health:
        """Return the body of GET /health."""
        grants = self._all_grants(instances)
        return health(uptime_s, self._reading, self._device_memory(), grants)

    def _device_memory(self) -> list[DeviceMemory]:
        return [
            DeviceMemory(
                index=device.index,
                kind=device.kind,
                used_mb=sample.used_mb,
                free_mb=sample.free_mb,
                headroom_mb=headroom_mb(self._config, device),
                usable=sample.health is DeviceHealth.OK and not self.is_cordoned(device),
                pool_free_mb=_pool_free_mb(device, sample),
            )
            for device, sample in zip(self.devices, self._reading.samples, strict=True)
        ]


def _pool_free_mb(device: Device, sample: DeviceSample) -> int | None:
    """Return the pool's free MiB; a lost device stays in the pool without constraining it."""
    if not device.unified:
        return None
    return device.vram_total_mb if sample.pool_free_mb is None else sample.pool_free_mb
