"""Troubles of cards while the neuron ran: told at once, and what the driver reported is kept as a warning."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator

from cortex_common.schema.hardware import Device, DeviceHealth, HostWarning
from neuron_server.core.xid import is_of_engine, meaning
from neuron_server.event_log import Journal
from neuron_server.hardware.host import Reading
from neuron_server.instances.state_machine import Instance


class Faults:
    """XID errors since the neuron's start, and cards that were lost or came back.

    Args:
        journal: told of each.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._devices: dict[str, Device] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._lost: set[str] = set()

    def enter(self, reading: Reading, instances: Collection[Instance]) -> None:
        """Take up what a reading brought; each reading once."""
        for device, sample in zip(reading.devices, reading.samples, strict=True):
            here = ", ".join(str(i.id) for i in instances if device.index in i.devices) or None
            lost = sample.health is DeviceHealth.LOST
            if lost != (device.uuid in self._lost):
                self._lost ^= {device.uuid}
                event, level = (
                    ("gpu_lost", logging.ERROR) if lost else ("gpu_recovered", logging.INFO)
                )
                self._journal.note(
                    event, level, device=device.index, reason=sample.reason, instances=here
                )
            for xid in sample.xids:
                self._journal.note(
                    "xid_error",
                    logging.WARNING,
                    device=device.index,
                    xid=xid,
                    meaning=meaning(xid),
                    instances=here,
                )
                self._devices[device.uuid] = device
                self._counts[device.uuid, xid] += 1

    def warnings(self) -> Iterator[HostWarning]:
        """One for each kind of error that a card had; an engine's own faults are no trouble of the host."""
        for (uuid, xid), count in self._counts.items():
            if is_of_engine(xid):
                continue
            device, times = self._devices[uuid], "once" if count == 1 else f"{count} times"
            yield HostWarning(
                code="xid_error",
                message=f"GPU {device.index} ({device.name}): XID {xid}, {times} since the neuron started: "
                f"{meaning(xid)}",
            )
