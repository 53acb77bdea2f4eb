"""Memory accounting of a node: the latest reading of its devices, joined with its instances' grants."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from cortex_common.config.neuron import NeuronConfig
from cortex_common.errors import DoesNotFit
from cortex_common.schema.hardware import Device, DeviceHealth, DeviceKind, Health
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server import views
from neuron_server.hardware.host import Host, Reading
from neuron_server.hardware.sample import DeviceSample
from neuron_server.instances.state_machine import HOLDING_MEMORY, Instance
from neuron_server.ledger import DeviceMemory, Grant, MemoryRequest, Reservation, admit
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
        grants = [grant for instance in instances for grant in self.grants(instance)]
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

        On a cpu device the whole grant stays reserved for as long as the instance exists: it is a budget, and resident
        memory grows with use. On a GPU an engine allocates all its memory while it loads, so the unused part is
        released afterwards. This holds even where the driver can't attribute memory to processes (in some containers,
        or for an attached engine), because free memory is measured.
        """
        if instance.state not in HOLDING_MEMORY:
            return []
        grants = []
        for index in instance.devices:
            measured = self._reading.samples[index].by_instance.get(instance.id)
            allocates_at_load = instance.attached or self.device_kind(index) is not DeviceKind.CPU
            released = allocates_at_load and instance.state is not InstanceState.LOADING
            grants.append(Grant(instance.id, index, instance.granted_mb, measured, released))
        return grants

    def footprint_mb(self, instance: Instance) -> tuple[int, ...]:
        """Return the MiB that unloading an instance would free on each of its devices."""
        return tuple(grant.footprint_mb for grant in self.grants(instance))

    def with_measurements(self, instance: Instance) -> Instance:
        """Return the instance with the latest reading's measurements."""
        measured = [self._reading.samples[i].by_instance.get(instance.id) for i in instance.devices]
        sizes = tuple(size for size in measured if size is not None)
        if len(sizes) < len(measured):
            return instance
        peak = max((instance.peak_mb, *sizes))
        return dataclasses.replace(instance, measured_mb=sizes, peak_mb=peak)

    def free_mb(self, devices: Iterable[int]) -> list[int]:
        """Return the free MiB of each given device."""
        return [self._reading.samples[index].free_mb for index in devices]

    def device_kind(self, index: int) -> DeviceKind:
        """Return the kind of a device."""
        return self.devices[index].kind

    def health(self, uptime_s: float, instances: Iterable[Instance]) -> Health:
        """Return the body of GET /health."""
        grants = [grant for instance in instances for grant in self.grants(instance)]
        return views.health(uptime_s, self._reading, self._device_memory(), grants)

    def _device_memory(self) -> list[DeviceMemory]:
        return [
            DeviceMemory(
                index=device.index,
                kind=device.kind,
                used_mb=sample.used_mb,
                free_mb=sample.free_mb,
                headroom_mb=views.headroom_mb(self._config, device),
                usable=sample.health is DeviceHealth.OK,
                pool_free_mb=_pool_free_mb(device, sample),
            )
            for device, sample in zip(self.devices, self._reading.samples, strict=True)
        ]


def _pool_free_mb(device: Device, sample: DeviceSample) -> int | None:
    """Return the pool's free MiB; a lost device stays in the pool without constraining it."""
    if not device.unified:
        return None
    return device.vram_total_mb if sample.pool_free_mb is None else sample.pool_free_mb
