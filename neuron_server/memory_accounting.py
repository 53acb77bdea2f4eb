"""The node's books: the latest reading of its devices, and what instances hold of them."""

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
from neuron_server.instances.state_machine import OCCUPIED, Instance
from neuron_server.ledger import DeviceMemory, Grant, Need, Reservation, admit
from neuron_server.process.process_table import TreeOf


class MemoryAccounting:
    """Joins measured devices and promised memory, always of the same moment.

    Args:
        config: for headrooms.
        host: the devices.
    """

    def __init__(self, config: NeuronConfig, host: Host) -> None:
        self._config = config
        self._host = host
        self._reading = Reading(0.0, (), (), {})

    async def read(self, trees: Mapping[InstanceId, TreeOf]) -> Reading:
        """Measure now; `trees` finds the processes of each instance's engine."""
        self._reading = await self._host.read(trees)
        return self._reading

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices as they were when they were measured."""
        return self._reading.devices

    def admit(self, needs: Sequence[Need], instances: Iterable[Instance]) -> Reservation:
        """Promise memory on the preferred kind of device, or on the next.

        Raises:
            BadRequest: see `ledger.admit`.
            DoesNotFit: the preferred kind's refusal.
        """
        grants = [grant for instance in instances for grant in self.grants(instance)]
        refused: DoesNotFit | None = None
        for need in needs:
            try:
                return admit(need, self._books(), grants)
            except DoesNotFit as failed:
                refused = refused or failed
        assert refused is not None, "there is always a need"
        raise refused

    def grants(self, instance: Instance) -> list[Grant]:
        """What an instance holds.

        A cpu device's promise stands as long as the instance does: its books are a budget, and resident memory
        grows with use. A GPU's engine takes what it needs while it loads, whether or not the driver can tell whose
        memory it is (in some containers it can't, and an attached engine's is not ours): free memory lacks it then.
        """
        if instance.state not in OCCUPIED:
            return []
        grants = []
        for index in instance.devices:
            measured = self._reading.samples[index].by_instance.get(instance.id)
            takes_at_load = instance.attached or self.kind_of(index) is not DeviceKind.CPU
            settled = takes_at_load and instance.state is not InstanceState.LOADING
            grants.append(Grant(instance.id, index, instance.granted_mb, measured, settled))
        return grants

    def counted_mb(self, instance: Instance) -> tuple[int, ...]:
        """MiB that each of an instance's devices lacks because of it: what its end would give back."""
        return tuple(grant.counted_mb for grant in self.grants(instance))

    def measured(self, instance: Instance) -> Instance:
        """The instance with the reading's numbers."""
        found = [self._reading.samples[i].by_instance.get(instance.id) for i in instance.devices]
        sizes = tuple(size for size in found if size is not None)
        if len(sizes) < len(found):
            return instance
        peak = max((instance.peak_mb, *sizes))
        return dataclasses.replace(instance, measured_mb=sizes, peak_mb=peak)

    def free_mb(self, devices: Iterable[int]) -> list[int]:
        """MiB that nobody uses, on each of some devices."""
        return [self._reading.samples[index].free_mb for index in devices]

    def kind_of(self, index: int) -> DeviceKind:
        """The kind of a device."""
        return self.devices[index].kind

    def health(self, uptime_s: float, instances: Iterable[Instance]) -> Health:
        """GET /health."""
        grants = [grant for instance in instances for grant in self.grants(instance)]
        return views.health(uptime_s, self._reading, self._books(), grants)

    def _books(self) -> list[DeviceMemory]:
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
    """A lost device of the pool still has its instances there, but says nothing about what is free."""
    if not device.unified:
        return None
    return device.vram_total_mb if sample.pool_free_mb is None else sample.pool_free_mb
